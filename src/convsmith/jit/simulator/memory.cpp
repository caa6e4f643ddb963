#include "memory.h"

#include <sanitizer/asan_interface.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <list>
#include <utility>

#include "scheduler.h"

namespace convsmith::simulator {
namespace {

constexpr unsigned char kFence = 0xff;
constexpr std::size_t kGranule = 8;  // AddressSanitizer cannot poison the head of one alone

std::list<const FencedMemory*> all;
struct sigaction sanitizers_action;

// A sanitizer's own first line says it best.
constexpr char kSanitizerSays[] = "was stopped";

}  // namespace

FencedMemory::FencedMemory(std::string name, std::size_t bytes, std::size_t like)
    : name_(std::move(name)), bytes_(bytes) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const auto whole_pages = [page](std::size_t size) { return (size + page - 1) / page * page; };
    const std::size_t zone = whole_pages(std::max(bytes, page));
    mapping_bytes_ = zone + whole_pages(like % page + bytes) + zone;
    void* mapping = mmap(nullptr, mapping_bytes_, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) stop("found no memory for " + name_);
    mapping_ = static_cast<unsigned char*>(mapping);
    begin_ = mapping_ + zone + like % page;
    std::memset(begin_ - kGranule, kFence, kGranule);
    __asan_poison_memory_region(mapping_, begin_ - mapping_);
    __asan_poison_memory_region(begin_ + bytes_, mapping_ + mapping_bytes_ - (begin_ + bytes_));
    all.push_back(this);
}

FencedMemory::~FencedMemory() {
    all.remove(this);
    __asan_unpoison_memory_region(mapping_, mapping_bytes_);
    munmap(mapping_, mapping_bytes_);
}

void FencedMemory::make_read_only() {
    mprotect(mapping_, mapping_bytes_, PROT_READ);
    read_only_ = true;
}

bool FencedMemory::is_fence_intact() const {
    return std::all_of(begin_ - kGranule, begin_,
                       [](unsigned char byte) { return byte == kFence; });
}

// What an access hit, in words; empty if it was none of the memories.
std::string describe_access(const unsigned char* address, const std::string& access) {
    for (const FencedMemory* memory : all) {
        if (address < memory->mapping_ || address >= memory->mapping_ + memory->mapping_bytes_) {
            continue;
        }
        const std::string whose =
            " of " + memory->name_ + " (" + std::to_string(memory->bytes_) + " bytes)";
        if (address < memory->begin_) {
            return access + ", " + std::to_string(memory->begin_ - address) +
                   " bytes before the beginning" + whose;
        }
        const auto offset = static_cast<std::size_t>(address - memory->begin_);
        if (offset >= memory->bytes_) {
            return access + ", " + std::to_string(offset - memory->bytes_) + " bytes past the end" +
                   whose;
        }
        return access + " at byte " + std::to_string(offset) + whose +
               (memory->read_only_ ? ", which is read-only" : "");
    }
    return "";
}

namespace {

void on_fault(int signal, siginfo_t* info, void* context) {
    // A fault inside a fenced memory can only be a write to a read-only one.
    const auto* address = static_cast<const unsigned char*>(info->si_addr);
    if (const std::string fault = describe_access(address, "wrote"); !fault.empty()) explain(fault);
    sanitizers_action.sa_sigaction(signal, info, context);
}

}  // namespace

void explain_bad_accesses() {
    struct sigaction action{};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &sanitizers_action);
}

}  // namespace convsmith::simulator

// The sanitizers call these before they print a report.

extern "C" void __asan_on_error() {
    using namespace convsmith::simulator;
    const auto* address = static_cast<const unsigned char*>(__asan_get_report_address());
    const std::string access = std::string(__asan_get_report_access_type() ? "wrote " : "read ") +
                               std::to_string(__asan_get_report_access_size()) + " bytes";
    const std::string fault = describe_access(address, access);
    explain(fault.empty() ? kSanitizerSays : fault);
}

extern "C" void __ubsan_on_report() {
    convsmith::simulator::explain(convsmith::simulator::kSanitizerSays);
}
