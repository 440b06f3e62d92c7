// Gradients of attention.
//
// Each task goes over its keys in blocks, and for each over its queries in blocks. A segment that several tasks say something about
// (it is an ancestor, or its queries are divided) has one sum a thread; which thread does which task is fixed, and so is the order
// of adding up: the same bits come out each time.

#include "attention_block.h"

namespace {

/// Heads lie one behind the other in a row.
template <class E>
struct Tensors {
    long H, G, D;
    Rows<const E> dout, q, k, v, out;
    const float* lse;
    Rows<E> dq, dk, dv;
};

/// Where segments that several tasks say something about lie in each thread's sums: token `first[s]`, -1 for the others.
struct Shared {
    std::vector<long> first;
    long tokens = 0;

    Shared(const Layout& layout, const std::vector<Task>& tasks) : first(size_t(layout.segments), -1) {
        for (long a = 0; a < layout.first_ancestor[layout.segments]; a++) add(layout, layout.ancestor[a]);
        for (const Task& task : tasks)
            if (!task.whole) add(layout, task.segment);
    }
    void add(const Layout& layout, long s) {
        if (first[size_t(s)] >= 0) return;
        first[size_t(s)] = tokens;
        tokens += layout.length[s];
    }
};

template <class E>
class Backward {
public:
    Backward(const Layout& layout, const How& how, const Tensors<E>& x, const Shared& shared)
        : layout_(layout), how_(how), x_(x), shared_(shared), columns_(ceil_to(x.D, 16)), block_(how, x.D) {}

    /// Use this memory, for tasks of up to so many queries; without any only say how much.
    long take(char* data, long queries) {
        Pieces pieces(data);
        char* block = pieces.take<char>(block_.take(nullptr));
        dq_ = pieces.take<float>(x_.H / x_.G * ceil_to(queries, ROWS) * columns_);
        dshared_ = pieces.take<float>(2 * shared_.tokens * x_.G * x_.D);
        if (data) {
            block_.take(block);
            std::memset(dshared_, 0, size_t(2 * shared_.tokens * x_.G * x_.D) * 4);
        }
        return pieces.used();
    }

    void run(const Task& task) {
        const Sight sight(layout_, how_, task.segment);
        const long heads = x_.H / x_.G, queries = task.end - task.begin, step = Block<E>::most_keys(x_.D);
        std::memset(dq_, 0, size_t(heads * ceil_to(queries, ROWS) * columns_) * 4);
        layout_.runs(task.segment, [&](long s, long key, long length) {
            const long low = std::max(key, sight.first_key(task.begin)), high = std::min(key + length, sight.end_key(task.end - 1));
            for (long j = low; j < high; j += step) keys(task, sight, s, j - key, j, std::min(step, high - j));
        });
        const long token = layout_.start[task.segment] + task.begin;
        for (long h = 0; h < heads; h++)
            for (long r = 0; r < queries; r++)
                write(x_.dq.at(token + r, (task.group * heads + h) * x_.D), dq(h, r, queries), how_.scale);
    }

    /// What this thread has to say about a token's key (0) or value (1) of a shared segment.
    float* shared(int which, long token, long group) const {
        return dshared_ + ((which * shared_.tokens + token) * x_.G + group) * x_.D;
    }

private:
    float* dq(long head, long query, long queries) const { return dq_ + (head * ceil_to(queries, ROWS) + query) * columns_; }

    /// All that the task's queries say about n keys, of which the first is the segment s's token `offset` and key `first`.
    void keys(const Task& task, const Sight& sight, long s, long offset, long first, long n) {
        const long token = layout_.start[s] + offset, heads = x_.H / x_.G;
        block_.set_keys(x_.k, x_.v, token, task.group * x_.D, first, n);
        const long begin = task.begin + floor_to(std::max(0L, sight.first_query(first) - task.begin), ROWS);
        // Whole tiles, so that what a tile computes beyond a block's end falls behind the task's last query.
        const long end = std::min(task.end, task.begin + ceil_to(sight.end_query(first + n - 1, task.end) - task.begin, ROWS));
        for (long head = 0; head < heads; head++)
            for (long i = begin; i < end; i += Block<E>::QUERIES) {
                const long m = std::min(Block<E>::QUERIES, end - i), feature = (task.group * heads + head) * x_.D;
                const long at = layout_.start[task.segment] + i;
                const float* lse = x_.lse + at * x_.H + task.group * heads + head;
                block_.set_queries(x_.q, x_.dout, x_.out, at, feature, lse, x_.H, i, m, layout_.tokens());
                // Memory's latency passes while this block is computed: the next block's rows, or the next head's first.
                if (i + m < end) fetch(at + m, std::min(Block<E>::QUERIES, end - i - m), feature);
                else if (head + 1 < heads) fetch(at - (i - begin), std::min(Block<E>::QUERIES, end - begin), feature + x_.D);
                block_.run(sight, dq(head, i - task.begin, task.end - task.begin));
            }
        const long shared_first = shared_.first[size_t(s)], feature = task.group * x_.D;
        for (long j = 0; j < n; j++) {
            if (shared_first < 0) {
                write(x_.dk.at(token + j, feature), block_.dk(j), how_.scale);
                write(x_.dv.at(token + j, feature), block_.dv(j), 1);
            } else {
                add(shared(0, shared_first + offset + j, task.group), block_.dk(j));
                add(shared(1, shared_first + offset + j, task.group), block_.dv(j));
            }
        }
    }

    void fetch(long token, long m, long feature) const {
        for (const Rows<const E>& x : {x_.q, x_.dout, x_.out}) prefetch(x.at(token, feature), x.row, m, x_.D);
    }

    void write(E* to, const float* from, float scale) const {
        each16(x_.D, [&](long d, auto lanes) { store(to + d, load(from + d) * all(scale), lanes); });
    }

    void add(float* to, const float* from) const {
        each16(x_.D, [&](long d, auto lanes) { store(to + d, load(to + d, lanes) + load(from + d), lanes); });
    }

    const Layout& layout_;
    const How& how_;
    const Tensors<E>& x_;
    const Shared& shared_;
    const long columns_;
    Block<E> block_;
    float *dq_ = nullptr, *dshared_ = nullptr;
};

/// Give each task to the thread that has least to do, the dearest first.
std::vector<std::vector<Task>> assign(const std::vector<Task>& tasks, int threads) {
    std::vector<std::vector<Task>> lists{size_t(threads)};
    std::vector<double> load(size_t(threads), 0.0);
    for (const Task& task : tasks) {
        size_t least = size_t(std::min_element(load.begin(), load.end()) - load.begin());
        lists[least].push_back(task);
        load[least] += task.cost;
    }
    return lists;
}

template <class E>
int differentiate(long threads, const Layout& layout, const How& how, const Tensors<E>& x) {
    const std::vector<Task> todo = tasks(layout, how, x.G, int(2 * threads));
    const auto lists = assign(todo, int(threads));
    const Shared shared(layout, todo);
    long queries = 0;
    for (const Task& task : todo) queries = std::max(queries, task.end - task.begin);
    std::vector<Backward<E>> workers(size_t(threads), Backward<E>(layout, how, x, shared));
    const long bytes = workers[0].take(nullptr, queries);
    Scratch own(threads * bytes);
    if (!own.ok()) return 1;
    parallel(int(threads), [&](int thread) {
        workers[size_t(thread)].take(own.at(thread * bytes), queries);
        for (const Task& task : lists[size_t(thread)]) workers[size_t(thread)].run(task);
    });
    parallel_range(int(threads), shared.tokens ? layout.segments : 0, [&](long begin, long end) {
        for (long s = begin; s < end; s++)
            for (long t = 0; shared.first[size_t(s)] >= 0 && t < layout.length[s]; t++)
                for (long g = 0; g < x.G; g++)
                    for (int which : {0, 1})
                        each16(x.D, [&](long d, auto lanes) {
                            Floats total = all(0);
                            const long token = shared.first[size_t(s)] + t;
                            for (const Backward<E>& worker : workers) total += load(worker.shared(which, token, g) + d, lanes);
                            const Rows<E>& to = which ? x.dv : x.dk;
                            store(to.at(layout.start[s] + t, g * x.D + d), total * all(which ? 1.0f : how.scale), lanes);
                        });
    });
    return 0;
}

template <class E>
int attention_backward(long threads, long H, long G, long D, double scale, long causal, long window, double softcap, long segments,
                       const int32_t* start, const int32_t* length, const int32_t* first_ancestor, const int32_t* ancestor,
                       const E* dout, long dout_row, const E* q, long q_row, const E* k, long k_row, const E* v, long v_row,
                       const E* out, long out_row, const float* lse, E* dq, long dq_row, E* dk, long dk_row, E* dv, long dv_row) {
    return differentiate<E>(threads, {segments, start, length, first_ancestor, ancestor},
                            {float(scale), causal != 0, window, float(softcap)},
                            {H, G, D, {dout, dout_row}, {q, q_row}, {k, k_row}, {v, v_row}, {out, out_row}, lse,
                             {dq, dq_row}, {dk, dk_row}, {dv, dv_row}});
}

}  // namespace

EXPORT(attention_backward)
