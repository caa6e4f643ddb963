// wgmma: the 128 threads of a warpgroup multiply two matrices in shared memory and add the product
// to their registers, while they go on. Compute capability 9.0 alone (sm_90a).
//
// Operands are 16-bit, in core matrices of 8 x 16 bytes that lie contiguously ("no swizzle"). From
// an operand's start, element (i, k) is, in bytes, at
//   K-major    i / 8 * outer + k / 8 * inner + i % 8 * 16 + k % 8 * 2
//   MN-major   i / 8 * outer + k / 8 * inner + k % 8 * 16 + i % 8 * 2
// where i counts rows of A or columns of B, and k the terms of the sum. Operands of 8 bits, e5m2,
// are K-major with twice as many terms in as many bytes.
#pragma once

#include <type_traits>

#include "element.cuh"
#include "launch.cuh"
#include "ptx/ldmatrix.cuh"

namespace convsmith::ptx {

inline constexpr int kWarpgroup = 128;  // threads
inline constexpr int kWgmmaRows = 64, kWgmmaTerms = 16;

enum class Major { kK, kMN };

// Which element of a result of kWgmmaRows rows value `i` of a thread's is.
__device__ __forceinline__ constexpr int fragment_row(int thread, int i) {
    return thread / 32 % 4 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
}
__device__ __forceinline__ constexpr int fragment_column(int thread, int i) {
    return i / 4 * 8 + thread % 4 * 2 + i % 2;
}

// Where an operand lies. `start` and both distances are multiples of 16 bytes.
__device__ __forceinline__ std::uint64_t matrix_descriptor(const void* start, int inner_bytes,
                                                           int outer_bytes) {
#ifdef CONVSMITH_SIMULATOR
    const auto address =
        static_cast<std::uint64_t>(static_cast<const unsigned char*>(start) -
                                   static_cast<unsigned char*>(simulator::shared_memory()));
#else
    const auto address = static_cast<std::uint64_t>(__cvta_generic_to_shared(start));
#endif
    return address / 16 | static_cast<std::uint64_t>(inner_bytes / 16) << 16 |
           static_cast<std::uint64_t>(outer_bytes / 16) << 32;
}

// The operand that begins `vectors` times 16 bytes after another one.
__device__ __forceinline__ std::uint64_t moved(std::uint64_t descriptor, int vectors) {
    // The upper half stays as it is, so that all of an operand's share a register.
    const auto low = static_cast<std::uint32_t>(descriptor) + static_cast<std::uint32_t>(vectors);
    return (descriptor & ~std::uint64_t{0xffffffff}) | low;
}

#ifdef CONVSMITH_SIMULATOR

// Before the first wgmma, and where registers that it adds to were written otherwise.
inline void wgmma_fence() {}

// The k-th core matrix of an operand's that row or column `i` goes through.
inline const unsigned char* core_matrix(std::uint64_t descriptor, int i, int k) {
    const auto field = [descriptor](int bit) {
        return static_cast<int>(descriptor >> bit & 0x3fff) * 16;
    };
    const auto* start = static_cast<const unsigned char*>(simulator::shared_memory()) + field(0);
    return start + i / 8 * field(32) + k * field(16);
}

// The 16 terms of row or column `i` of an operand.
template <Major kMajor, typename T>
simulator::Terms<T> terms_of(std::uint64_t descriptor, int i) {
    using CoreMatrix = simulator::CoreMatrix<T>;
    CoreMatrix cores[kWgmmaTerms / 8];
    for (int k = 0; k < kWgmmaTerms / 8; ++k) {
        cores[k] = *reinterpret_cast<const CoreMatrix*>(core_matrix(descriptor, i, k));
    }
    constexpr bool kIsKMajor = kMajor == Major::kK;
    return simulator::terms_of(cores, i % 8 * (kIsKMajor ? 8 : 1), kIsKMajor ? 1 : 8);
}

// The same of an operand of 8 bits. Each is the upper half of a 16-bit number.
struct E5m2Terms {
    simulator::Terms<__half> halves[2];
    const simulator::Terms<__half>& operator[](int k) const { return halves[k]; }
};
inline E5m2Terms e5m2_terms_of(std::uint64_t descriptor, int i) {
    E5m2Terms terms;
    for (int k = 0; k < 2; ++k) {
        const auto* row = core_matrix(descriptor, i, k) + i % 8 * 16;
        simulator::CoreMatrix<__half> cores[kWgmmaTerms / 8] = {};
        for (int j = 0; j < kWgmmaTerms; ++j) {
            const auto bits = static_cast<std::uint16_t>(row[j] << 8);
            std::memcpy(cores[j / 8].values + j % 8, &bits, sizeof(bits));
        }
        terms.halves[k] = simulator::terms_of(cores, 0, 1);
    }
    return terms;
}

// sums = A * B, or sums + A * B if it `accumulates`, for kColumns columns of B. The operands are
// read, and the sums written, when the thread waits: whoever overwrites an operand or reads a sum
// too early is found out.
template <typename T, int kColumns, Major kA = Major::kK, Major kB = Major::kK>
void wgmma(float (&sums)[kColumns / 2], std::uint64_t a, std::uint64_t b, bool accumulates) {
    const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
    simulator::put_off([&sums, a, b, accumulates, thread] {
        simulator::Terms<T> rows[2], columns[2];
        for (int half = 0; half < 2; ++half) {
            rows[half] = terms_of<kA, T>(a, fragment_row(thread, 2 * half));
        }
        for (int i = 0; i < kColumns / 2; ++i) {
            if (i % 4 < 2) columns[i % 2] = terms_of<kB, T>(b, fragment_column(thread, i));
            sums[i] = simulator::truncated_sum(accumulates ? sums[i] : 0, rows[i / 2 % 2],
                                               columns[i % 2]);
        }
    });
}

// The same with A in registers: each warp's 16 rows. They may not change until the thread has
// waited.
template <typename T, int kColumns, Major kB = Major::kK>
void wgmma(float (&sums)[kColumns / 2], const Fragments& a, std::uint64_t b, bool accumulates) {
    const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
    simulator::CoreMatrix<T> cores[2][kWgmmaTerms / 8];  // of a row of a's each, and its terms
    for (int other = 0; other < 4; ++other) {
        for (int i = 0; i < 4; ++i) {
            const auto pair = static_cast<unsigned>(simulator::exchange(a[i], other, 0));
            T* terms = cores[i % 2][i / 2].values + (thread ^ other) % 4 * 2;
            std::memcpy(terms, &pair, sizeof(pair));
        }
    }
    simulator::Terms<T> rows[2];
    for (int half = 0; half < 2; ++half) rows[half] = simulator::terms_of(cores[half], 0, 1);
    Fragments begun_with;
    std::memcpy(begun_with, a, sizeof(a));
    simulator::put_off([&sums, &a, b, accumulates, thread, rows, begun_with] {
        const bool is_same = std::memcmp(begun_with, a, sizeof(a)) == 0;
        simulator::Terms<T> columns[2];
        for (int i = 0; i < kColumns / 2; ++i) {
            if (i % 4 < 2) columns[i % 2] = terms_of<kB, T>(b, fragment_column(thread, i));
            const float sum = accumulates ? sums[i] : 0;
            sums[i] = is_same ? simulator::truncated_sum(sum, rows[i / 2 % 2], columns[i % 2])
                              : std::numeric_limits<float>::quiet_NaN();
        }
    });
}

// The same of operands of 8 bits: twice as many terms, half of them at a time, which changes their
// sum by what its precision is anyway.
template <int kColumns>
void wgmma_e5m2(float (&sums)[kColumns / 2], std::uint64_t a, std::uint64_t b, bool accumulates) {
    const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
    simulator::put_off([&sums, a, b, accumulates, thread] {
        E5m2Terms rows[2], columns[2];
        for (int half = 0; half < 2; ++half) {
            rows[half] = e5m2_terms_of(a, fragment_row(thread, 2 * half));
        }
        for (int i = 0; i < kColumns / 2; ++i) {
            if (i % 4 < 2) columns[i % 2] = e5m2_terms_of(b, fragment_column(thread, i));
            float sum = accumulates ? sums[i] : 0;
            for (int k = 0; k < 2; ++k) {
                sum = simulator::truncated_sum(sum, rows[i / 2 % 2][k], columns[i % 2][k],
                                               simulator::kKeptBitsOf8);
            }
            sums[i] = sum;
        }
    });
}

// Makes a group of the products that the calling thread has begun.
inline void wgmma_commit_group() { simulator::close_group(); }

// Returns when all groups of the calling thread's but the last kGroups are done.
template <int kGroups>
void wgmma_wait_group() {
    simulator::finish_groups(kGroups);
}

#else

__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit_group() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int kGroups>
__device__ __forceinline__ void wgmma_wait_group() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}

// The registers of a thread's result, as an asm statement names and binds them, by their number.
#define CONVSMITH_NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define CONVSMITH_NAMES_16 CONVSMITH_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define CONVSMITH_NAMES_32                                                                       \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, " \
    "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define CONVSMITH_NAMES_64                                                                    \
    CONVSMITH_NAMES_32                                                                        \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, " \
    "%49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define CONVSMITH_EIGHT(i)                                                                     \
    "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), "+f"(sums[i + 4]), \
        "+f"(sums[i + 5]), "+f"(sums[i + 6]), "+f"(sums[i + 7])
#define CONVSMITH_BIND_8 CONVSMITH_EIGHT(0)
#define CONVSMITH_BIND_16 CONVSMITH_BIND_8, CONVSMITH_EIGHT(8)
#define CONVSMITH_BIND_32 CONVSMITH_BIND_16, CONVSMITH_EIGHT(16), CONVSMITH_EIGHT(24)
#define CONVSMITH_BIND_64                                                             \
    CONVSMITH_BIND_32, CONVSMITH_EIGHT(32), CONVSMITH_EIGHT(40), CONVSMITH_EIGHT(48), \
        CONVSMITH_EIGHT(56)

// The product of some columns: how many registers its result has, what its other operands are
// called, and what binds A.
#define CONVSMITH_WGMMA_OF(type, columns, registers, a, b, flag, majors, ...)              \
    asm volatile("{.reg .pred p; setp.ne.b32 p, " flag                                     \
                 ", 0; wgmma.mma_async.sync.aligned.m64n" columns "k16.f32." type "." type \
                 " {" CONVSMITH_NAMES_##registers "}, " a ", " b ", p, 1, 1, " majors ";}" \
                 : CONVSMITH_BIND_##registers                                              \
                 : __VA_ARGS__, "l"(b_bits), "r"(static_cast<int>(accumulates)),           \
                   "n"(static_cast<int>(kB)))
#define CONVSMITH_WGMMA(...)                                                      \
    static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>); \
    if constexpr (std::is_same_v<T, __half>) {                                    \
        CONVSMITH_WGMMA_OF("f16", __VA_ARGS__);                                   \
    } else {                                                                      \
        CONVSMITH_WGMMA_OF("bf16", __VA_ARGS__);                                  \
    }

#define CONVSMITH_A "l"(a_bits), "n"(static_cast<int>(kA))

template <typename T, int kColumns, Major kA = Major::kK, Major kB = Major::kK>
__device__ __forceinline__ void wgmma(float (&sums)[kColumns / 2], std::uint64_t a_bits,
                                      std::uint64_t b_bits, bool accumulates) {
    static_assert(kColumns == 16 || kColumns == 32 || kColumns == 64 || kColumns == 128);
    if constexpr (kColumns == 16) {
        CONVSMITH_WGMMA("16", 8, "%8", "%10", "%11", "%9, %12", CONVSMITH_A);
    } else if constexpr (kColumns == 32) {
        CONVSMITH_WGMMA("32", 16, "%16", "%18", "%19", "%17, %20", CONVSMITH_A);
    } else if constexpr (kColumns == 64) {
        CONVSMITH_WGMMA("64", 32, "%32", "%34", "%35", "%33, %36", CONVSMITH_A);
    } else {
        CONVSMITH_WGMMA("128", 64, "%64", "%66", "%67", "%65, %68", CONVSMITH_A);
    }
}

#undef CONVSMITH_A
#define CONVSMITH_A "r"(a_values[0]), "r"(a_values[1]), "r"(a_values[2]), "r"(a_values[3])

template <typename T, int kColumns, Major kB = Major::kK>
__device__ __forceinline__ void wgmma(float (&sums)[kColumns / 2], const Fragments& a_values,
                                      std::uint64_t b_bits, bool accumulates) {
    static_assert(kColumns == 16 || kColumns == 32 || kColumns == 64);
    if constexpr (kColumns == 16) {
        CONVSMITH_WGMMA("16", 8, "{%8, %9, %10, %11}", "%12", "%13", "%14", CONVSMITH_A);
    } else if constexpr (kColumns == 32) {
        CONVSMITH_WGMMA("32", 16, "{%16, %17, %18, %19}", "%20", "%21", "%22", CONVSMITH_A);
    } else {
        CONVSMITH_WGMMA("64", 32, "{%32, %33, %34, %35}", "%36", "%37", "%38", CONVSMITH_A);
    }
}

template <int kColumns>
__device__ __forceinline__ void wgmma_e5m2(float (&sums)[kColumns / 2], std::uint64_t a,
                                           std::uint64_t b, bool accumulates) {
    static_assert(kColumns == 128);
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %66, 0; "
        "wgmma.mma_async.sync.aligned.m64n128k32.f32.e5m2.e5m2 {" CONVSMITH_NAMES_64
        "}, %64, %65, p, 1, 1;}"
        : CONVSMITH_BIND_64
        : "l"(a), "l"(b), "r"(static_cast<int>(accumulates)));
}

#undef CONVSMITH_A
#undef CONVSMITH_WGMMA
#undef CONVSMITH_WGMMA_OF
#undef CONVSMITH_BIND_64
#undef CONVSMITH_BIND_32
#undef CONVSMITH_BIND_16
#undef CONVSMITH_BIND_8
#undef CONVSMITH_EIGHT
#undef CONVSMITH_NAMES_64
#undef CONVSMITH_NAMES_32
#undef CONVSMITH_NAMES_16
#undef CONVSMITH_NAMES_8

#endif

}  // namespace convsmith::ptx
