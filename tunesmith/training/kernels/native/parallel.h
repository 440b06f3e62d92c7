// Threads, ranges and scratch memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

// The entry of GNU OpenMP that `#pragma omp parallel` compiles to. Called by name it takes whatever OpenMP library the
// process has loaded, which is torch's own: its threads are already there, and a second set would fight them for the cores.
extern "C" void GOMP_parallel(void (*function)(void*), void* data, unsigned threads, unsigned flags);
extern "C" int omp_get_thread_num();
extern "C" int omp_get_num_threads();

/// Call work(i) for i = 0 ... parts - 1 side by side. It is the same whichever thread takes which part.
template <class Work>
void parallel(int parts, const Work& work) {
    struct Job {
        int parts;
        const Work& work;
    } job{parts, work};
    auto run = [](void* data) {
        const Job& job = *static_cast<const Job*>(data);
        for (int i = omp_get_thread_num(); i < job.parts; i += omp_get_num_threads()) job.work(i);
    };
    if (parts == 1) work(0);
    else GOMP_parallel(run, &job, unsigned(parts), 0);
}

struct Range {
    long begin, end;
};

/// The i-th of `parts` nearly equal parts of 0 ... n - 1, cut at multiples of `step`.
inline Range part(long n, int parts, int i, long step = 1) {
    long steps = (n + step - 1) / step;
    long begin = steps * i / parts * step, end = steps * (i + 1) / parts * step;
    return {begin < n ? begin : n, end < n ? end : n};
}

template <class Work>
void parallel_range(int threads, long n, const Work& work) {
    parallel(threads, [&](int i) {
        Range range = part(n, threads, i);
        work(range.begin, range.end);
    });
}

inline long ceil_to(long n, long step) { return (n + step - 1) / step * step; }
inline long floor_to(long n, long step) { return n / step * step; }

/// Memory for as long as it lives, in lines of the cache. Ask `ok` before use.
class Scratch {
public:
    explicit Scratch(long bytes) : data_(static_cast<char*>(std::aligned_alloc(64, size_t(ceil_to(bytes + 64, 64))))) {}
    ~Scratch() { std::free(data_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    bool ok() const { return data_ != nullptr; }
    char* at(long offset) const { return data_ + offset; }

private:
    char* data_;
};

/// Hands out pieces of a scratch, one behind the other. Without one (null) it only counts how much they need.
class Pieces {
public:
    explicit Pieces(char* data) : data_(data) {}
    template <class T>
    T* take(long n) {
        T* piece = data_ ? reinterpret_cast<T*>(data_ + used_) : nullptr;
        used_ += ceil_to(n * long(sizeof(T)), 64);
        return piece;
    }
    long used() const { return used_; }

private:
    char* data_;
    long used_ = 0;
};
