// Calls the kernels on inputs drawn from a seed and compares with naive loops in long double. Every buffer ends where
// its last value does, at an offset from its beginning: built with sanitizers, a step beyond either end is found.
//
//     kernels_driver SEED CALLS

#define PAST_CACHE (1 << 14)  // so that small outputs take that way too
#include "kernels.cpp"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

namespace {

using real = long double;
std::mt19937_64 rng;

int64_t drawn(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(rng); }
int64_t length(int64_t high) {  // small lengths as often as large ones
    return std::max<int64_t>(1, std::llround(std::exp2(std::uniform_real_distribution<>(0, std::log2(high))(rng))));
}

template <class T>
struct Buffer {
    int64_t offset, count;
    std::unique_ptr<T[]> memory;

    explicit Buffer(int64_t count) : offset(drawn(0, 3)), count(count), memory(new T[offset + count]) {}
    T* data() { return memory.get() + offset; }
    real at(int64_t i) { return load(data()[i]); }
    void fill(double mean, double spread) {
        std::normal_distribution<> normal(mean, spread);
        for (int64_t i = 0; i < count; ++i) store(data() + i, static_cast<wide<T>>(normal(rng)));
    }
};

template <class T>
struct Kernels;
#define KERNELS(NAME, T)                                                                            \
    template <>                                                                                     \
    struct Kernels<T> {                                                                             \
        static constexpr const char* name = #NAME;                                                  \
        static constexpr void (*forward[])(const Call*) = {columns_forward_##NAME, rows_forward_##NAME};   \
        static constexpr void (*backward[])(const Call*) = {columns_backward_##NAME, rows_backward_##NAME}; \
    };
KERNELS(float32, float)
KERNELS(float64, double)
KERNELS(bfloat16, bfloat16)

// How a call is seen: rows, columns, columns of small maps, local statistics with parameters a channel of either layout.
enum View { ROWS, COLUMNS, MAPS, LOCAL, LOCAL_LAST };

template <class T>
void call(int64_t number) {
    using A = wide<T>;
    const View view = static_cast<View>(drawn(0, 4));
    const bool weighted = drawn(0, 3), biased = drawn(0, 3), with_dx = drawn(0, 4), relu = drawn(0, 1);
    const bool running = drawn(0, 1), local = view >= LOCAL;
    const int64_t budget = 1 << drawn(4, 18), channels = length(std::min<int64_t>(budget, 3000));
    const int64_t kinds[] = {1, 16, 64, length(budget / channels + 1)};
    const int64_t some = std::min<int64_t>(kinds[drawn(0, 3)], view == MAPS ? 64 : budget);
    const int64_t map = view == COLUMNS ? 1 : view == ROWS ? std::max<int64_t>(some, 16) : some;
    const int64_t n = length(std::max<int64_t>(1, budget / (channels * map)) + 1);
    // n, statistics and values of each in an image
    const int64_t c = local ? channels * map : channels, l = local ? 1 : map;
    const int threads = static_cast<int>(drawn(1, 3));
    const double eps = 1e-5, momentum = 0.3, offset = drawn(0, 1) ? 0 : std::exp2(drawn(-3, sizeof(T) > 2 ? 16 : 4));
    const auto at = [&](int64_t i, int64_t ch, int64_t j) { return (i * c + ch) * l + j; };
    const auto of = [&](int64_t ch) { return view == LOCAL ? ch / map : view == LOCAL_LAST ? ch % channels : ch; };
    const auto kept = [&](int64_t ch) { return view == LOCAL_LAST ? ch % channels * map + ch / channels : ch; };

    Buffer<T> x(n * c * l), dy(n * c * l), y(n * c * l), dx(n * c * l);
    Buffer<A> weight(channels), bias(channels), mean(c), var(c), shift(c), sum_dy(channels), sum_product(channels);
    Buffer<A> running_mean(c), running_var(c);
    int64_t batches = 7;
    x.fill(offset, 1);
    if (!drawn(0, 7)) x.fill(offset, 0);  // constants
    dy.fill(0.5, 1);
    weight.fill(1, 0.3);
    bias.fill(0, 1);
    running_mean.fill(2, 0);
    running_var.fill(2, 0);
    Call each = {};
    each.x = x.data();
    each.weight = weighted ? weight.data() : nullptr;
    each.bias = biased ? bias.data() : nullptr;
    each.out = y.data();
    each.mean = mean.data();
    each.var = var.data();
    each.shift = relu ? shift.data() : nullptr;
    if (running && n * l > 1) {
        each.running_mean = running_mean.data();
        each.running_var = running_var.data();
        each.batches = &batches;
    }
    each.n = n;
    each.c = view == ROWS ? c : c * l;
    each.l = l;
    each.parameters = channels;
    each.inner = view == LOCAL ? map : view == LOCAL_LAST ? 0 : 1;
    each.locations = view == LOCAL_LAST ? map : 0;
    each.relu = relu;
    each.threads = threads;
    each.eps = eps;
    each.momentum = momentum;
    Kernels<T>::forward[view == ROWS](&each);
    each.dy = dy.data();
    each.out = with_dx ? dx.data() : nullptr;
    if (weighted || biased) each.sum_dy = sum_dy.data();
    if (weighted || biased) each.sum_product = sum_product.data();
    Kernels<T>::backward[view == ROWS](&each);

    const real unit = std::numeric_limits<A>::epsilon(), m = n * l;
    std::vector<real> gradients(channels), products(channels);
    real most = 0;  // rounding of a mean among those that share a parameter
    const real digit = sizeof(T) == 2 ? 1e-2L : sizeof(T) == 4 ? 3e-4L : 1e-9L;
    const auto check = [&](const char* what, real found, real want, real scale) {
        if (std::abs(found - want) <= digit * (std::abs(want) + scale)) return;
        std::printf("call %lld: %s %s, n=%lld c=%lld l=%lld, relu %d, offset %g: %s is %Lg, not %Lg\n", (long long)number,
                    (const char*[]){"rows", "columns", "maps", "local", "local, last"}[view], Kernels<T>::name, (long long)n, (long long)c, (long long)l, relu, offset, what,
                    found, want);
        std::exit(1);
    };
    // What is positive is for the output to say, which is checked: near 0 it is a matter of rounding.
    const auto masked = [&](int64_t i, int64_t ch, int64_t j) {
        return relu && y.at(at(i, ch, j)) <= 0 ? 0 : dy.at(at(i, ch, j));
    };
    for (int64_t ch = 0; ch < c; ++ch) {
        real mu = 0, squares = 0, gradient = 0, product = 0;
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < l; ++j) mu += x.at(at(i, ch, j)) / m;
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < l; ++j) squares += (x.at(at(i, ch, j)) - mu) * (x.at(at(i, ch, j)) - mu);
        check("mean", mean.at(ch), mu, 1e-3L);
        check("variance", var.at(ch), squares / m, 1e-4L);
        if (!(var.at(ch) >= 0)) check("sign of the variance", var.at(ch), 0, 0);
        if (each.running_mean) {
            const real unbiased = squares / (m - 1);
            check("running mean", running_mean.at(kept(ch)), 2 + momentum * (mu - 2), 1e-3L);
            check("running variance", running_var.at(kept(ch)), 2 + momentum * (unbiased - 2), 1e-3L);
        }
        const real rstd = 1 / std::sqrt(squares / m + eps), g = weighted ? weight.at(of(ch)) : 1;
        const real rounding = unit * std::abs(mu) * rstd;  // of the mean that the backward gets
        const real in_y = sizeof(A) == 8 ? 4 * rounding / digit : 0;  // narrower means are corrected in y
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < l; ++j) {
                const real xhat = (x.at(at(i, ch, j)) - mu) * rstd, up = masked(i, ch, j);
                gradient += up;
                product += up * xhat;
                const real out = xhat * g + (biased ? bias.at(of(ch)) : 0);
                check("y", y.at(at(i, ch, j)), relu ? std::max<real>(0, out) : out, 1 + in_y);
            }
        gradients[of(ch)] += gradient;
        products[of(ch)] += product;
        most = std::max(most, rounding);
        if (!with_dx) continue;
        for (int64_t i = 0; i < n; ++i)
            for (int64_t j = 0; j < l; ++j) {
                const real xhat = (x.at(at(i, ch, j)) - mu) * rstd, up = masked(i, ch, j);
                const real want = g * rstd * (up - gradient / m - xhat * product / m);
                check("dx", dx.at(at(i, ch, j)), want, (4 + std::abs(g)) * rstd * (1 + 8 * rounding / digit));
            }
    }
    if (!each.sum_dy) return;
    const real of_each = m * c / channels;
    for (int64_t p = 0; p < channels; ++p) {
        check("sum of dy", sum_dy.at(p), gradients[p], of_each);
        check("sum of dy * xhat", sum_product.at(p), products[p], of_each * (1 + 8 * most / digit));
    }
    if (each.batches) check("batches", batches, 8, 0);
}

}  // namespace

int main(int, char** arguments) {
    const int64_t seed = std::atoll(arguments[1]), calls = std::atoll(arguments[2]);
    for (int64_t i = 0; i < calls; ++i) {
        rng.seed(static_cast<uint64_t>(seed + i));
        switch (drawn(0, 2)) {
            case 0: call<float>(i); break;
            case 1: call<double>(i); break;
            default: call<bfloat16>(i);
        }
    }
    std::printf("%lld calls agree\n", (long long)calls);
}
