// The program around a simulated kernel: serves launches, one after the other, on the socket that
// is its standard input.
//
//   once      -> one byte: ready
//   request   <- Request, the problem, a BufferHeader for each buffer, the contents of each
//   reply     -> the length of an error text and the text; if it is empty, the contents of each
//                writable buffer
//
// Numbers are in the machine's own byte order: both ends are on one machine. What a kernel prints
// goes to standard output and disturbs nothing. An error that a sanitizer or the scheduler finds
// ends the program, and its report is on standard error.
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "memory.h"
#include "scheduler.h"

const char* convsmith_launch(const void* problem, std::size_t problem_bytes,
                             const std::uintptr_t* addresses, std::size_t address_count,
                             std::uintptr_t stream);

namespace convsmith::simulator {
namespace {

using Bytes = std::vector<unsigned char>;

struct Request {
    std::uint64_t time_limit;  // microseconds
    std::uint64_t problem_bytes, buffers;
};

struct BufferHeader {
    std::uint64_t address;  // the caller's; 0: a null pointer
    std::uint64_t bytes, writable;
};

struct Buffer {
    BufferHeader header;
    Bytes contents;
};

// Fills `target`; ends the program when the caller has gone away.
void receive(void* target, std::size_t bytes) {
    auto* next = static_cast<unsigned char*>(target);
    while (bytes > 0) {
        const ssize_t count = read(STDIN_FILENO, next, bytes);
        if (count <= 0) _exit(0);
        next += count;
        bytes -= static_cast<std::size_t>(count);
    }
}

void send(const void* source, std::size_t bytes) {
    const auto* next = static_cast<const unsigned char*>(source);
    while (bytes > 0) {
        const ssize_t count = ::send(STDIN_FILENO, next, bytes, MSG_NOSIGNAL);
        if (count <= 0) _exit(0);
        next += count;
        bytes -= static_cast<std::size_t>(count);
    }
}

void send(const std::string& error) {
    const std::uint64_t length = error.size();
    send(&length, sizeof length);
    send(error.data(), error.size());
}

// Launches on copies of the buffers; `results` are the writable ones' contents after it.
std::string launch_on_copies(const Bytes& problem, const std::vector<Buffer>& buffers, Order order,
                             std::vector<Bytes>& results) {
    std::vector<std::unique_ptr<FencedMemory>> copies;
    std::vector<std::uintptr_t> addresses;
    for (const Buffer& buffer : buffers) {
        auto& copy = copies.emplace_back();
        if (buffer.header.address == 0) {
            addresses.push_back(0);
            continue;
        }
        copy = std::make_unique<FencedMemory>("buffer " + std::to_string(addresses.size()),
                                              buffer.contents.size(), buffer.header.address);
        std::copy(buffer.contents.begin(), buffer.contents.end(), copy->begin());
        if (!buffer.header.writable) copy->make_read_only();
        addresses.push_back(reinterpret_cast<std::uintptr_t>(copy->begin()));
    }
    set_order(order);
    const char* error =
        convsmith_launch(problem.data(), problem.size(), addresses.data(), addresses.size(), 0);
    if (error != nullptr) return error;
    for (std::size_t i = 0; i < buffers.size(); ++i) {
        if (copies[i] == nullptr) continue;
        if (!copies[i]->is_fence_intact()) {
            return "wrote just before the beginning of buffer " + std::to_string(i);
        }
        if (buffers[i].header.writable) {
            results.emplace_back(copies[i]->begin(), copies[i]->begin() + copies[i]->bytes());
        }
    }
    return "";
}

// Where two runs of the same launch differ, in words; empty if nowhere.
std::string difference(const std::vector<Buffer>& buffers, const std::vector<Bytes>& first,
                       const std::vector<Bytes>& second) {
    std::size_t result = 0;
    for (std::size_t i = 0; i < buffers.size(); ++i) {
        if (buffers[i].header.address == 0 || !buffers[i].header.writable) continue;
        const auto [one, other] =
            std::mismatch(first[result].begin(), first[result].end(), second[result].begin());
        if (one != first[result].end()) {
            return "the result depends on the order of threads: buffer " + std::to_string(i) +
                   " differs from byte " + std::to_string(one - first[result].begin()) +
                   " on between ascending and descending order; a barrier is missing, or two "
                   "threads write one element";
        }
        ++result;
    }
    return "";
}

void set_time_limit(std::uint64_t microseconds) {
    constexpr std::uint64_t kSecond = 1000000;
    itimerval timer{};
    timer.it_value.tv_sec = static_cast<time_t>(microseconds / kSecond);
    timer.it_value.tv_usec = static_cast<suseconds_t>(microseconds % kSecond);
    setitimer(ITIMER_REAL, &timer, nullptr);
}

void on_time_limit(int) {
    // Should the report hang, because the signal came at a bad moment, the next one kills.
    signal(SIGALRM, SIG_DFL);
    set_time_limit(5000000);
    stop("was still running at the time limit");
}

void serve_one() {
    Request request;
    receive(&request, sizeof request);
    Bytes problem(request.problem_bytes);
    receive(problem.data(), problem.size());
    std::vector<Buffer> buffers(request.buffers);
    for (Buffer& buffer : buffers) receive(&buffer.header, sizeof buffer.header);
    for (Buffer& buffer : buffers) {
        buffer.contents.resize(buffer.header.bytes);
        receive(buffer.contents.data(), buffer.contents.size());
    }

    set_time_limit(request.time_limit);
    std::vector<Bytes> results, other_results;
    std::string error = launch_on_copies(problem, buffers, Order::kAscending, results);
    if (error.empty()) {
        error = launch_on_copies(problem, buffers, Order::kDescending, other_results);
    }
    if (error.empty()) error = difference(buffers, results, other_results);
    set_time_limit(0);

    std::fflush(stdout);
    send(error);
    if (!error.empty()) return;
    for (const Bytes& result : results) send(result.data(), result.size());
}

}  // namespace
}  // namespace convsmith::simulator

int main() {
    using namespace convsmith::simulator;
    explain_bad_accesses();
    struct sigaction action{};
    action.sa_handler = on_time_limit;
    action.sa_flags = SA_NODEFER | SA_ONSTACK;
    sigaction(SIGALRM, &action, nullptr);
    send("!", 1);
    for (;;) serve_one();
}
