// Low-rank adapters: the skinny matrix products around the large ones, dropout done on the way.
//
// x [T, I], A [R, I], low [T, R]; all are cut into blocks of rows that stay in the first two levels of cache.

#include <tuple>
#include <vector>

#include "pack.h"

namespace {

/// The dropout mask's numbers, the columns' filled up so that registers can be loaded whole.
class Columns {
public:
    Columns(const int32_t* column, long I) : scratch_(ceil_to(I, 32) * 4 + 128) {
        if (!ok()) return;
        std::memset(data(), 0, size_t(ceil_to(I, 32) * 4 + 128));
        if (column) std::memcpy(data(), column, size_t(I) * 4);
    }
    bool ok() const { return scratch_.ok(); }
    int32_t* data() const { return reinterpret_cast<int32_t*>(scratch_.at(0)); }

private:
    Scratch scratch_;
};

/// Pointers to `n` rows of a row matrix.
template <class E>
void row_pointers(const E* first, long row, long n, const E** out) {
    for (long i = 0; i < n; i++) out[i] = first + i * row;
}

// low = drop(x) Aᵀ -------------------------------------------------------------------------------------------------------

/// Words of x that are summed over at a time, so that these columns of A stay in the first-level cache.
constexpr long DEPTH = 128;

template <class E, class K>
int lora_down_keeping(const K& keep, long threads, long T, long I, long R, const E* x, long x_row, const E* A, long A_row, E* low, long low_row) {
    const long depth = words<E>(I), columns = ceil_to(R, 16), left_step = DEPTH + 16;
    Scratch shared(columns * depth * 4 + R * long(sizeof(E*)));
    auto layout = [=](char* data) {
        Pieces pieces(data);
        auto* left = pieces.take<uint32_t>(ROWS * left_step);
        auto* sums = pieces.take<float>(ROWS * columns);
        return std::make_tuple(left, sums, pieces.used());
    };
    const long bytes = std::get<2>(layout(nullptr));
    Scratch own(threads * bytes);
    if (!shared.ok() || !own.ok()) return 1;
    // Panels of up to 64 columns, each with all words of A behind one another.
    auto* packed = reinterpret_cast<uint32_t*>(shared.at(0));
    auto** rows = reinterpret_cast<const E**>(shared.at(columns * depth * 4));
    row_pointers(A, A_row, R, rows);
    for (long n = 0; n < columns; n += 64)
        pack_transposed(rows + n, std::min(64L, R - n), I, packed + n * depth, std::min(64L, columns - n));

    parallel(int(threads), [&](int thread) {
        auto [left, sums, used] = layout(own.at(thread * bytes));
        Range range = part(T, int(threads), thread, ROWS);
        const E* pointers[ROWS];
        for (long t = range.begin; t < range.end; t += ROWS) {
            long here = std::min(ROWS, range.end - t);
            row_pointers(x + t * x_row, x_row, here, pointers);
            for (long k = 0; k < depth; k += DEPTH) {
                long some = std::min(DEPTH, depth - k), i = k * per_word<E>;
                for (long m = 0; m < here && k; m++) pointers[m] += DEPTH * per_word<E>;
                copy_rows(pointers, here, std::min(I - i, some * per_word<E>), left, left_step, keep, t, i);
                for (long n = 0; n < columns; n += 64) {
                    long width = std::min(64L, columns - n);
                    Left a{reinterpret_cast<char*>(left), left_step * 4, 4};
                    const uint32_t* b = packed + n * depth + k * width;
                    if (k) product<E, true>(int(width / 16), here, some, a, b, width, sums + n, columns);
                    else product<E, false>(int(width / 16), here, some, a, b, width, sums + n, columns);
                }
            }
            for (long m = 0; m < here; m++)
                each16(R, [&](long r, auto lanes) { store(low + (t + m) * low_row + r, load(sums + m * columns + r, lanes), lanes); });
        }
    });
    return 0;
}

template <class E>
int lora_down(long threads, const int32_t* row, const int32_t* column, long threshold, long T, long I, long R, const E* x, long x_row,
              const E* A, long A_row, E* low, long low_row) {
    if (!row) return lora_down_keeping(KeepAll{}, threads, T, I, R, x, x_row, A, A_row, low, low_row);
    Columns columns(column, I);
    if (!columns.ok()) return 1;
    return lora_down_keeping(Keep{row, columns.data(), int32_t(threshold)}, threads, T, I, R, x, x_row, A, A_row, low, low_row);
}

// Sums of outer products over the rows: low^T drop(x) ----------------------------------------------------------------------

/// Rows of x that are taken at a time, and columns.
constexpr long BLOCK = 96, PANEL = 48;

/// One thread's share of low^T drop(x), [R, N], float32.
template <class E>
class Outer {
public:
    Outer(long R, long N) : R_(R), N_(N), rank_(std::max(ceil_to(R, 16), ceil_to(R, ROWS))), row_(ceil_to(N, PANEL) + 16) {}

    long bytes() { return take(nullptr); }

    /// Use this memory. Returns how much of it.
    long take(char* data) {
        Pieces pieces(data);
        sums_ = pieces.take<float>(rank_ * row_);
        left_ = pieces.take<uint32_t>(words<E>(BLOCK) * rank_);
        right_ = pieces.take<uint32_t>(words<E>(BLOCK) * PANEL);
        if (data) std::memset(data, 0, size_t(pieces.used()));
        return pieces.used();
    }

    /// Add the product of up to BLOCK rows; `t` is the first one's number.
    template <class K>
    void add(const E* const* low, const E** x, long num_rows, const K& keep, long t) {
        pack_rows(low, num_rows, R_, left_, rank_, KeepAll{}, 0, 0);
        for (long n = 0; n < N_; n += PANEL) {
            long width = std::min(PANEL, N_ - n);
            pack_rows(x, num_rows, width, right_, PANEL, keep, t, n);
            Left a{reinterpret_cast<char*>(left_), 4, rank_ * 4};
            product<E, true>(int(ceil_to(width, 16) / 16), R_, words<E>(num_rows), a, right_, PANEL, sums_ + n, row_);
            for (long m = 0; m < num_rows; m++) x[m] += PANEL;
        }
    }

    const float* sums(long r) const { return sums_ + r * row_; }

private:
    long R_, N_, rank_, row_;
    float* sums_ = nullptr;
    uint32_t *left_ = nullptr, *right_ = nullptr;
};

/// dx += keep (dlow A), for up to BLOCK rows.
template <class E, class K>
void add_gradient(const uint32_t* left, long left_step, const uint32_t* packed, long R, long I, float* sums, E* dx, long dx_row,
                  long num_rows, const K& keep, long t) {
    const long depth = words<E>(R);
    for (long i = 0; i < I; i += 64) {
        long width = std::min(64L, I - i), runs = ceil_to(width, 16) / 16;
        Left a{reinterpret_cast<const char*>(left), left_step * 4, 4};
        product<E, false>(int(runs), num_rows, depth, a, packed + i * depth, runs * 16, sums, 64);
        for (long m = 0; m < num_rows; m++)
            each16(width, [&](long j, auto lanes) {
                E* place = dx + m * dx_row + i + j;
                Floats old = load(place, lanes), more = load(sums + m * 64 + j);
                store(place, _mm512_mask_add_ps(old, keep.at(t + m, i + j), old, more), lanes);
            });
    }
}

template <class E, class K>
int lora_down_backward_keeping(const K& keep, long threads, long T, long I, long R, const E* dlow, long dlow_row, const E* x, long x_row,
                               const E* A, long A_row, E* dx, long dx_row, float* dA) {
    const long depth = words<E>(R), left_step = ceil_to(depth, 16);
    Scratch shared(ceil_to(I, 64) * depth * 4 + R * long(sizeof(E*)));
    Outer<E> model(R, I);
    auto layout = [&](char* data) {
        Pieces pieces(data);
        auto* outer = pieces.take<char>(model.bytes());
        auto* left = pieces.take<uint32_t>(BLOCK * left_step);
        auto* sums = pieces.take<float>(BLOCK * 64);
        return std::make_tuple(outer, left, sums, pieces.used());
    };
    const long bytes = std::get<3>(layout(nullptr));
    Scratch own(threads * bytes);
    std::vector<Outer<E>> outers(size_t(threads), model);
    if (!shared.ok() || !own.ok()) return 1;
    auto* packed = reinterpret_cast<uint32_t*>(shared.at(0));
    auto** rows = reinterpret_cast<const E**>(shared.at(ceil_to(I, 64) * depth * 4));
    row_pointers(A, A_row, R, rows);
    for (long i = 0; i < I; i += 64) {
        long width = std::min(64L, I - i);
        pack_rows(rows, R, width, packed + i * depth, ceil_to(width, 16), KeepAll{}, 0, 0);
        for (long r = 0; r < R; r++) rows[r] += 64;
    }

    parallel(int(threads), [&](int thread) {
        auto [memory, left, sums, used] = layout(own.at(thread * bytes));
        Outer<E>& outer = outers[size_t(thread)];
        outer.take(memory);
        Range range = part(T, int(threads), thread, BLOCK);
        const E *low_rows[BLOCK], *x_rows[BLOCK];
        for (long t = range.begin; t < range.end; t += BLOCK) {
            long here = std::min(BLOCK, range.end - t);
            row_pointers(dlow + t * dlow_row, dlow_row, here, low_rows);
            row_pointers(x + t * x_row, x_row, here, x_rows);
            outer.add(low_rows, x_rows, here, keep, t);
            if (!dx) continue;
            copy_rows(low_rows, here, R, left, left_step, KeepAll{}, 0, 0);
            add_gradient(left, left_step, packed, R, I, sums, dx + t * dx_row, dx_row, here, keep, t);
        }
    });
    parallel_range(int(threads), R, [&](long begin, long end) {
        for (long r = begin; r < end; r++)
            each16(I, [&](long i, auto lanes) {
                Floats total = load(outers[0].sums(r) + i, lanes);
                for (size_t other = 1; other < outers.size(); other++) total += load(outers[other].sums(r) + i, lanes);
                store(dA + r * I + i, total, lanes);
            });
    });
    return 0;
}

template <class E>
int lora_down_backward(long threads, const int32_t* row, const int32_t* column, long threshold, long T, long I, long R, const E* dlow,
                       long dlow_row, const E* x, long x_row, const E* A, long A_row, E* dx, long dx_row, float* dA) {
    if (!row) return lora_down_backward_keeping(KeepAll{}, threads, T, I, R, dlow, dlow_row, x, x_row, A, A_row, dx, dx_row, dA);
    Columns columns(column, I);
    if (!columns.ok()) return 1;
    Keep keep{row, columns.data(), int32_t(threshold)};
    return lora_down_backward_keeping(keep, threads, T, I, R, dlow, dlow_row, x, x_row, A, A_row, dx, dx_row, dA);
}

// dB = dyᵀ low -------------------------------------------------------------------------------------------------------------

template <class E>
int lora_up_backward(long threads, long T, long O, long R, const E* dy, long dy_row, const E* low, long low_row, float* dB) {
    Outer<E> model(R, O);
    const long bytes = model.bytes();
    Scratch own(threads * bytes);
    std::vector<Outer<E>> outers(size_t(threads), model);
    if (!own.ok()) return 1;
    parallel(int(threads), [&](int thread) {
        Outer<E>& outer = outers[size_t(thread)];
        outer.take(own.at(thread * bytes));
        Range range = part(T, int(threads), thread, BLOCK);
        const E *low_rows[BLOCK], *dy_rows[BLOCK];
        for (long t = range.begin; t < range.end; t += BLOCK) {
            long here = std::min(BLOCK, range.end - t);
            row_pointers(low + t * low_row, low_row, here, low_rows);
            row_pointers(dy + t * dy_row, dy_row, here, dy_rows);
            outer.add(low_rows, dy_rows, here, KeepAll{}, t);
        }
    });
    parallel_range(int(threads), O, [&](long begin, long end) {
        for (long r = 0; r < R; r++)
            for (long o = begin; o < end; o++) {
                float total = outers[0].sums(r)[o];
                for (size_t other = 1; other < outers.size(); other++) total += outers[other].sums(r)[o];
                dB[o * R + r] = total;
            }
    });
    return 0;
}

}  // namespace

EXPORT(lora_down)
EXPORT(lora_down_backward)
EXPORT(lora_up_backward)
