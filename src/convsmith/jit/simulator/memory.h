// Memory that a kernel works on, fenced so that AddressSanitizer sees every access beside it.
#pragma once

#include <cstddef>
#include <string>

namespace convsmith::simulator {

// `bytes` bytes between two poisoned zones, each at least as long: an index that is wrong by one,
// in whatever dimension, ends up in a zone and not in another buffer.
class FencedMemory {
  public:
    // `like` is an address whose place in its page the memory takes, so that what is misaligned
    // there is misaligned here.
    FencedMemory(std::string name, std::size_t bytes, std::size_t like);
    FencedMemory(const FencedMemory&) = delete;
    ~FencedMemory();

    unsigned char* begin() const { return begin_; }
    std::size_t bytes() const { return bytes_; }
    void make_read_only();

    // Whether nobody wrote to the few bytes before the beginning that cannot be poisoned.
    bool is_fence_intact() const;

  private:
    friend std::string describe_access(const unsigned char* address, const std::string& access);

    std::string name_;
    unsigned char *mapping_, *begin_;
    std::size_t bytes_, mapping_bytes_;
    bool read_only_ = false;
};

// From now on a bad access is first said in plain words (see `explain`), then by the sanitizers.
void explain_bad_accesses();

}  // namespace convsmith::simulator
