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

// low = drop(x) Aᵀ -------------------------------------------------------------------------------------------------------

/// Words of x that are summed over at a time, so that these columns of A stay in the first-level cache.
constexpr long DEPTH = 128;

/// Rows of A that become columns of the product at a time.
constexpr long WIDTH = 64;

template <class E, class K>
int down(const K& keep, long threads, long T, long I, long R, Rows<const E> x, Rows<const E> A, Rows<E> low) {
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
    auto* packed = reinterpret_cast<uint32_t*>(shared.at(0));
    auto** a_rows = reinterpret_cast<const E**>(shared.at(columns * depth * 4));
    point(A.data, A.row, R, a_rows);
    for (long n = 0; n < columns; n += WIDTH)
        pack_transposed(a_rows + n, std::min(WIDTH, R - n), I, packed + n * depth, std::min(WIDTH, columns - n));

    parallel(int(threads), [&](int thread) {
        auto [left, sums, used] = layout(own.at(thread * bytes));
        const Range range = part(T, int(threads), thread, ROWS);
        for (long t = range.begin; t < range.end; t += ROWS) {
            const long here = std::min(ROWS, range.end - t), behind = std::min(ROWS, range.end - t - here);
            Ahead ahead(x.at(t + here), x.row, behind, I, depth * ((columns + WIDTH - 1) / WIDTH));
            for (long k = 0; k < depth; k += DEPTH) {
                const long some = std::min(DEPTH, depth - k), i = k * per_word<E>;
                const E* rows[ROWS];
                point(x.at(t, i), x.row, here, rows);
                copy_rows(rows, here, std::min(I - i, some * per_word<E>), left, left_step, keep, t, i);
                const Left a{reinterpret_cast<char*>(left), left_step * 4, 4};
                for (long n = 0; n < columns; n += WIDTH) {
                    const long width = std::min(WIDTH, columns - n);
                    const uint32_t* b = packed + n * depth + k * width;
                    if (k) product<E, true>(int(width / 16), here, some, a, b, width, sums + n, columns, ahead);
                    else product<E, false>(int(width / 16), here, some, a, b, width, sums + n, columns, ahead);
                }
            }
            for (long m = 0; m < here; m++)
                each16(R, [&](long r, auto lanes) { store(low.at(t + m, r), load(sums + m * columns + r, lanes), lanes); });
        }
    });
    return 0;
}

template <class E>
int lora_down(long threads, const int32_t* row, const int32_t* column, long threshold, long T, long I, long R, const E* x, long x_row,
              const E* A, long A_row, E* low, long low_row) {
    if (!row) return down<E>(KeepAll{}, threads, T, I, R, {x, x_row}, {A, A_row}, {low, low_row});
    Columns columns(column, I);
    if (!columns.ok()) return 1;
    return down<E>(Keep{row, columns.data(), int32_t(threshold)}, threads, T, I, R, {x, x_row}, {A, A_row}, {low, low_row});
}

// Sums of outer products over the rows: lowᵀ drop(x) -----------------------------------------------------------------------

/// Rows of x that are taken at a time; columns that are multiplied at a time; columns after which the next rows come, so that a block
/// of rows, the next one and its sums stay in the second-level cache.
constexpr long BLOCK = 96, PANEL = 48, CHUNK = 768;

/// Call work(first column, number of columns) for chunks of N columns of about the same size, whole panels of 48 and of 64.
template <class Work>
void each_chunk(long N, const Work& work) {
    const long chunk = ceil_to(N / ((N + CHUNK - 1) / CHUNK), 192);
    for (long n = 0; n < N; n += chunk) work(n, std::min(chunk, N - n));
}

/// One thread's share of lowᵀ drop(x), [R, N], float32.
template <class E>
class Outer {
public:
    Outer(long R, long N) : R_(R), rank_(std::max(ceil_to(R, 16), ceil_to(R, ROWS))), row_(ceil_to(N, PANEL) + 16) {}

    /// Use this memory; without any only say how much.
    long take(char* data) {
        Pieces pieces(data);
        sums_ = pieces.take<float>(rank_ * row_);
        left_ = pieces.take<uint32_t>(words<E>(BLOCK) * rank_);
        right_ = pieces.take<uint32_t>(words<E>(BLOCK) * PANEL);
        if (data) std::memset(data, 0, size_t(pieces.used()));
        return pieces.used();
    }

    /// Add the product of m rows from t on (up to BLOCK), for n columns from `first` on; meanwhile fetch what lies ahead.
    template <class K>
    void add(Rows<const E> low, Rows<const E> x, long t, long m, long first, long n, const K& keep, Ahead ahead) {
        const E* rows[BLOCK];
        point(low.at(t), low.row, m, rows);
        pack_rows(rows, m, R_, left_, rank_, KeepAll{}, 0, 0);
        for (long i = first; i < first + n; i += PANEL) {
            const long width = std::min(PANEL, first + n - i), runs = ceil_to(width, 16) / 16;
            point(x.at(t, i), x.row, m, rows);
            pack_rows(rows, m, width, right_, PANEL, keep, t, i);
            for (long r = 0; r < R_; r += 24 / runs) {
                const char* left = reinterpret_cast<char*>(left_ + r);
                tile<E, true>(int(runs), left, 4, rank_ * 4, right_, PANEL, words<E>(m), sums_ + r * row_ + i, row_, ahead);
            }
        }
    }

    /// About how many words are multiplied with a full block of n columns.
    long steps(long n) const { return (n + PANEL - 1) / PANEL * ((R_ + 7) / 8) * words<E>(BLOCK); }

    const float* sums(long r) const { return sums_ + r * row_; }

private:
    long R_, rank_, row_;
    float* sums_ = nullptr;
    uint32_t *left_ = nullptr, *right_ = nullptr;
};

/// dx += keep (dlow A), for blocks of rows.
template <class E>
class Gradient {
public:
    explicit Gradient(long R) : R_(R), depth_(words<E>(R)), left_step_(ceil_to(depth_, 16)) {}

    /// Use this memory; without any only say how much.
    long take(char* data) {
        Pieces pieces(data);
        left_ = pieces.take<uint32_t>(BLOCK * left_step_);
        sums_ = pieces.take<float>(BLOCK * WIDTH);
        return pieces.used();
    }

    /// Pack A in panels of 64 columns, as `add` wants it; words of `packed`.
    static void pack(Rows<const E> A, long I, long R, const E** rows, uint32_t* packed) {
        for (long i = 0; i < I; i += WIDTH) {
            point(A.at(0, i), A.row, R, rows);
            pack_rows(rows, R, std::min(WIDTH, I - i), packed + i * words<E>(R), ceil_to(std::min(WIDTH, I - i), 16), KeepAll{}, 0, 0);
        }
    }

    /// For m rows from t on (up to BLOCK) and n columns from `first` on; meanwhile fetch what lies ahead.
    template <class K>
    void add(Rows<const E> dlow, const uint32_t* packed, Rows<E> dx, long t, long m, long first, long n, const K& keep, Ahead ahead) {
        const E* rows[BLOCK];
        point(dlow.at(t), dlow.row, m, rows);
        copy_rows(rows, m, R_, left_, left_step_, KeepAll{}, 0, 0);
        const Left a{reinterpret_cast<const char*>(left_), left_step_ * 4, 4};
        for (long i = first; i < first + n; i += WIDTH) {
            const long width = std::min(WIDTH, first + n - i), runs = ceil_to(width, 16) / 16;
            product<E, false>(int(runs), m, depth_, a, packed + i * depth_, runs * 16, sums_, WIDTH, ahead);
            for (long r = 0; r < m; r++)
                each16(width, [&](long j, auto lanes) {
                    Floats old = load(dx.at(t + r, i + j), lanes), more = load(sums_ + r * WIDTH + j);
                    store(dx.at(t + r, i + j), _mm512_mask_add_ps(old, keep.at(t + r, i + j), old, more), lanes);
                });
        }
    }

    /// About how many words are multiplied with a full block of n columns.
    long steps(long n) const { return (n + WIDTH - 1) / WIDTH * (BLOCK / 6) * depth_; }

private:
    long R_, depth_, left_step_;
    uint32_t* left_ = nullptr;
    float* sums_ = nullptr;
};

template <class E, class K>
int down_backward(const K& keep, long threads, long T, long I, long R, Rows<const E> dlow, Rows<const E> x, Rows<const E> A,
                  Rows<E> dx, float* dA) {
    Outer<E> outer(R, I);
    Gradient<E> gradient(R);
    const long outer_bytes = outer.take(nullptr), bytes = outer_bytes + gradient.take(nullptr);
    const long packed_bytes = ceil_to(I, WIDTH) * words<E>(R) * 4;
    Scratch shared(packed_bytes + R * long(sizeof(E*))), own(threads * bytes);
    std::vector<Outer<E>> outers(size_t(threads), outer);
    if (!shared.ok() || !own.ok()) return 1;
    auto* packed = reinterpret_cast<uint32_t*>(shared.at(0));
    if (dx.data) Gradient<E>::pack(A, I, R, reinterpret_cast<const E**>(shared.at(packed_bytes)), packed);
    parallel(int(threads), [&](int thread) {
        Outer<E>& outer = outers[size_t(thread)];
        Gradient<E> gradient(R);
        outer.take(own.at(thread * bytes));
        gradient.take(own.at(thread * bytes + outer_bytes));
        const Range range = part(T, int(threads), thread, ROWS);
        each_chunk(I, [&](long first, long n) {
            for (long t = range.begin; t < range.end; t += BLOCK) {
                const long m = std::min(BLOCK, range.end - t), behind = std::min(BLOCK, range.end - t - m);
                const Ahead next(x.at(t + m, first), x.row, behind, n, dx.data ? gradient.steps(n) : outer.steps(n));
                outer.add(dlow, x, t, m, first, n, keep, dx.data ? Ahead(dx.at(t, first), dx.row, m, n, outer.steps(n)) : next);
                if (dx.data) gradient.add(dlow, packed, dx, t, m, first, n, keep, next);
            }
        });
    });
    parallel_range(int(threads), R, [&](long begin, long end) {
        for (long r = begin; r < end; r++)
            each16(I, [&](long i, auto lanes) {
                Floats total = all(0);
                for (const Outer<E>& share : outers) total += load(share.sums(r) + i, lanes);
                store(dA + r * I + i, total, lanes);
            });
    });
    return 0;
}

template <class E>
int lora_down_backward(long threads, const int32_t* row, const int32_t* column, long threshold, long T, long I, long R, const E* dlow,
                       long dlow_row, const E* x, long x_row, const E* A, long A_row, E* dx, long dx_row, float* dA) {
    if (!row) return down_backward<E>(KeepAll{}, threads, T, I, R, {dlow, dlow_row}, {x, x_row}, {A, A_row}, {dx, dx_row}, dA);
    Columns columns(column, I);
    if (!columns.ok()) return 1;
    const Keep keep{row, columns.data(), int32_t(threshold)};
    return down_backward<E>(keep, threads, T, I, R, {dlow, dlow_row}, {x, x_row}, {A, A_row}, {dx, dx_row}, dA);
}

// dB = dyᵀ low, computed as (lowᵀ dy)ᵀ ---------------------------------------------------------------------------------------

template <class E>
int lora_up_backward(long threads, long T, long O, long R, const E* dy_data, long dy_row, const E* low, long low_row, float* dB) {
    const Rows<const E> dy{dy_data, dy_row};
    Outer<E> outer(R, O);
    const long bytes = outer.take(nullptr);
    Scratch own(threads * bytes);
    std::vector<Outer<E>> outers(size_t(threads), outer);
    if (!own.ok()) return 1;
    parallel(int(threads), [&](int thread) {
        Outer<E>& outer = outers[size_t(thread)];
        outer.take(own.at(thread * bytes));
        const Range range = part(T, int(threads), thread, ROWS);
        each_chunk(O, [&](long first, long n) {
            for (long t = range.begin; t < range.end; t += BLOCK) {
                const long m = std::min(BLOCK, range.end - t), behind = std::min(BLOCK, range.end - t - m);
                const Ahead next(dy.at(t + m, first), dy.row, behind, n, outer.steps(n));
                outer.add({low, low_row}, dy, t, m, first, n, KeepAll{}, next);
            }
        });
    });
    parallel_range(int(threads), O, [&](long begin, long end) {
        for (long r = 0; r < R; r++)
            for (long o = begin; o < end; o++) {
                float total = 0;
                for (const Outer<E>& share : outers) total += share.sums(r)[o];
                dB[o * R + r] = total;
            }
    });
    return 0;
}

}  // namespace

EXPORT(lora_down)
EXPORT(lora_down_backward)
EXPORT(lora_up_backward)
