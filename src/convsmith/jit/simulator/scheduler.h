// The scheduler as the driver sees it.
#pragma once

#include <string>

namespace convsmith::simulator {

// In which order blocks run, and the threads of a block between two barriers. Of two threads that a
// barrier should have kept apart, one comes first in either order.
enum class Order { kAscending, kDescending };
void set_order(Order order);

// Says on standard error which thread of which block did what; once, the cause and not its
// consequences. `fault` continues the sentence.
void explain(const std::string& fault);

// The same, then where the thread is, and ends the process.
[[noreturn]] void stop(const std::string& fault);

}  // namespace convsmith::simulator
