// CUDA's threads as fibres: one block at a time, one thread at a time, each until it has to wait.
#include "scheduler.h"

#include <sanitizer/common_interface_defs.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "memory.h"
#include "simulator.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace convsmith::simulator {
namespace {

constexpr std::size_t kStackBytes = 256 * 1024;
constexpr std::size_t kSharedBytesLimit = 227 * 1024;

// A thread of the running block, or (host) the code that launches.
struct Fibre {
    ucontext_t start;  // where a new one begins
    void* jump[5];     // where one that has run goes on
    bool has_run = false;
    const void* stack = nullptr;
    std::size_t stack_bytes = 0;
    uint3 index{};
    Fibre *next = nullptr, *previous = nullptr;  // among the threads that have not returned
    bool has_returned = false;
    const char* where = nullptr;  // what it waited at last, and on which line
    int line = 0;
    std::vector<std::function<void()>> put_off;  // of the group that is not closed
    std::deque<std::vector<std::function<void()>>> groups;
};

Order order = Order::kAscending;
Fibre host;
std::deque<Fibre> fibres;  // kept from block to block; a deque does not move them
Fibre* running = &host;
Fibre* leaving;

// What the lanes of a warp hand to one another. Calls alternate between two sets of values, so that
// a lane that is ahead overwrites nothing that another one has yet to read.
constexpr int kLanes = 32;
struct Warp {
    std::uint64_t values[2][kLanes];
    int calls;  // of all lanes together
};
std::vector<Warp> warps;

struct Block {
    void (*thread)(const void* context);
    const void* context;
    FencedMemory* shared;
    int threads;
    int unreturned;
    int waits;    // since a thread last went on
    int arrived;  // at the barrier
    int phase;    // of the barrier
    int line;     // of the barrier that the arrived ones are at
} block;

// Barriers of a part of the block, by their numbers.
struct NamedBarrier {
    int arrived, phase;
};
NamedBarrier named_barriers[16];

std::string text(const char* what, const uint3& index) {
    char buffer[80];
    std::snprintf(buffer, sizeof buffer, "%s (%u, %u, %u)", what, index.x, index.y, index.z);
    return buffer;
}

std::string place_of(const Fibre& fibre) {
    const std::string thread = text("thread", fibre.index);
    if (fibre.has_returned) return thread + " has returned";
    return thread + " waits at " + fibre.where + " on line " + std::to_string(fibre.line);
}

// AddressSanitizer is told of every change of stacks: it could not place a frame's variables else.
void arrive() { __sanitizer_finish_switch_fiber(nullptr, &leaving->stack, &leaving->stack_bytes); }

// Apart from switch_to: setjmp and longjmp may not be in one function.
[[noreturn, gnu::noinline]] void jump_to(Fibre& fibre) {
    if (fibre.has_run) __builtin_longjmp(fibre.jump, 1);
    setcontext(&fibre.start);
    std::abort();  // it does not return
}

// Not swapcontext: it takes two system calls, and AddressSanitizer's version of it forgets which
// bytes of the stack lie between variables.
[[gnu::noinline]] void switch_to(Fibre& fibre) {
    leaving = running;
    leaving->has_run = true;
    running = &fibre;
    threadIdx = fibre.index;
    __sanitizer_start_switch_fiber(nullptr, fibre.stack, fibre.stack_bytes);
    if (__builtin_setjmp(leaving->jump) == 0) jump_to(fibre);
    arrive();
}

// Runs a thread of each block, for as long as there are blocks.
void fibre_main() {
    arrive();
    for (;;) {
        go_on();
        block.thread(block.context);
        Fibre& self = *running;
        if (!self.put_off.empty() || !self.groups.empty()) {
            stop("has returned without waiting for what it had begun");
        }
        self.has_returned = true;
        self.previous->next = self.next;
        self.next->previous = self.previous;
        switch_to(--block.unreturned == 0 ? host : *self.next);
    }
}

void add_fibre() {
    Fibre& fibre = fibres.emplace_back();
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    void* mapping = mmap(nullptr, page + kStackBytes, PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    // The first page stays inaccessible: stacks grow down into it.
    char* stack = static_cast<char*>(mapping) + page;
    if (mapping == MAP_FAILED || mprotect(stack, kStackBytes, PROT_READ | PROT_WRITE) != 0) {
        stop("found no memory for another thread's stack");
    }
    getcontext(&fibre.start);
    fibre.start.uc_stack.ss_sp = stack;
    fibre.start.uc_stack.ss_size = kStackBytes;
    fibre.stack = stack;
    fibre.stack_bytes = kStackBytes;
    makecontext(&fibre.start, fibre_main, 0);
}

void run_block() {
    std::memset(block.shared->begin(), 0xff, block.shared->bytes());
    block.unreturned = block.threads;
    block.arrived = 0;
    std::fill(std::begin(named_barriers), std::end(named_barriers), NamedBarrier{});
    const int n = block.threads;
    warps.assign((n + kLanes - 1) / kLanes, Warp{});
    const int step = order == Order::kAscending ? 1 : n - 1;
    for (int i = 0; i < n; ++i) {
        Fibre& fibre = fibres[i];
        const unsigned x = blockDim.x, y = blockDim.y, flat = static_cast<unsigned>(i);
        fibre.index = {flat % x, flat / x % y, flat / x / y};
        fibre.has_returned = false;
        fibre.next = &fibres[(i + step) % n];
        fibre.previous = &fibres[(i + n - step) % n];
    }
    switch_to(order == Order::kAscending ? fibres[0] : fibres[n - 1]);
}

}  // namespace

void set_order(Order wanted) { order = wanted; }

void explain(const std::string& fault) {
    static bool explained = false;
    if (explained) return;
    explained = true;
    const bool in_kernel = running != &host;
    const std::string who = in_kernel ? text("thread", threadIdx) + text(" of block", blockIdx)
                                      : std::string("the host code");
    std::fprintf(stderr, "simulator: %s %s\n", who.c_str(), fault.c_str());
}

void stop(const std::string& fault) {
    explain(fault);
    __sanitizer_print_stack_trace();
    std::fflush(nullptr);
    _exit(1);
}

void give_way(const char* where, int line) {
    Fibre& self = *running;
    self.where = where;
    self.line = line;
    if (++block.waits > block.unreturned) {
        // Each thread has looked in vain since anything happened: find one to blame.
        const Fibre* other = self.next;
        for (int i = 0; i < block.threads; ++i) {
            if (fibres[i].has_returned) other = &fibres[i];
        }
        stop(std::string("waits for ever at ") + where + " on line " + std::to_string(line) + ": " +
             place_of(*other));
    }
    if (self.next != &self) switch_to(*self.next);
}

void go_on() { block.waits = 0; }

void* shared_memory() { return block.shared->begin(); }

std::uint64_t exchange(std::uint64_t bits, int lane_mask, int line) {
    const int thread = static_cast<int>(
        threadIdx.x + blockDim.x * (threadIdx.y + std::uint64_t{blockDim.y} * threadIdx.z));
    const int lane = thread % kLanes;
    Warp& warp = warps[thread / kLanes];
    const int turn = warp.calls / kLanes;
    warp.values[turn % 2][lane] = bits;
    ++warp.calls;
    wait_until([&warp, turn] { return warp.calls >= (turn + 1) * kLanes; }, "a shuffle", line);
    return warp.values[turn % 2][lane ^ lane_mask];
}

void named_barrier(int id, int threads, bool waits, int line) {
    NamedBarrier& barrier = named_barriers[id];
    const int phase = barrier.phase;
    if (++barrier.arrived == threads) {
        barrier.arrived = 0;
        ++barrier.phase;
        go_on();
    }
    if (waits) {
        wait_until([&barrier, phase] { return barrier.phase != phase; }, "a named barrier", line);
    }
}

void put_off(std::function<void()> work) { running->put_off.push_back(std::move(work)); }

void close_group() {
    running->groups.push_back(std::move(running->put_off));
    running->put_off.clear();
}

void finish_groups(int remaining) {
    auto& groups = running->groups;
    while (groups.size() > static_cast<std::size_t>(remaining)) {
        for (const auto& work : groups.front()) work();
        groups.pop_front();
    }
}

const char* run_grid(void (*thread)(const void* context), const void* context, dim3 grid,
                     dim3 block_size, std::size_t shared_bytes) {
    const auto count = [](dim3 extent) { return std::uint64_t{extent.x} * extent.y * extent.z; };
    if (count(grid) == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 ||
        count(block_size) == 0 || count(block_size) > 1024 || block_size.z > 64) {
        return "invalid configuration argument";
    }
    if (shared_bytes > kSharedBytesLimit) return "invalid argument";

    FencedMemory shared("shared memory", shared_bytes, 0);
    block.thread = thread;
    block.context = context;
    block.shared = &shared;
    block.threads = static_cast<int>(count(block_size));
    while (fibres.size() < count(block_size)) add_fibre();
    gridDim = grid;
    blockDim = block_size;
    for (std::uint64_t i = 0; i < count(grid); ++i) {
        const std::uint64_t flat = order == Order::kAscending ? i : count(grid) - 1 - i;
        blockIdx = {static_cast<unsigned>(flat % grid.x),
                    static_cast<unsigned>(flat / grid.x % grid.y),
                    static_cast<unsigned>(flat / grid.x / grid.y)};
        run_block();
    }
    return nullptr;
}

}  // namespace convsmith::simulator

void __syncthreads(int line) {
    using namespace convsmith::simulator;
    if (block.arrived == 0) {
        block.line = line;
    } else if (block.line != line) {
        stop("is at __syncthreads on line " + std::to_string(line) +
             " while others wait at the one on line " + std::to_string(block.line));
    }
    const int phase = block.phase;
    if (++block.arrived == block.threads) {
        block.arrived = 0;
        ++block.phase;
    }
    wait_until([phase] { return block.phase != phase; }, "__syncthreads", line);
}
