use ndarray::{Array2, Array3, ArrayView3, Axis, concatenate};
use proptest::prelude::*;
use pulp::Scalar;

use super::{Attention, ForwardState, Gradients, Segment};
use crate::kernels::simd::{Chosen, Processor};
use crate::runtime::parallel::Threads;

/// A call that owns its arrays.
#[derive(Debug)]
struct Call {
    query: Array3<f32>,
    carried: (Array3<f32>, Array3<f32>),
    own: (Array3<f32>, Array3<f32>),
    segments: Vec<Segment>,
    window: Option<usize>,
    softcap: Option<f32>,
}

impl Call {
    fn attention(&self) -> Attention<'_> {
        let mut keys = vec![(self.own.0.view(), self.own.1.view())];
        if self.carried.0.dim().1 > 0 {
            keys.insert(0, (self.carried.0.view(), self.carried.1.view()));
        }
        let (window, softcap) = (self.window, self.softcap);
        Attention { query: self.query.view(), keys, segments: &self.segments, scale: 0.3, window, softcap }
    }

    fn run_on(&self, processor: impl Processor) -> (Array3<f32>, Array2<f32>) {
        let (heads, tokens, _) = self.query.dim();
        let mut out = Array3::zeros((tokens, heads, self.own.1.dim().2));
        let mut log_sum_exp = Array2::zeros((tokens, heads));
        let (into, sums) = (out.as_slice_mut().unwrap(), log_sum_exp.as_slice_mut().unwrap());
        self.attention().run_on(processor, into, sums, &Threads(2)).unwrap();
        (out, log_sum_exp)
    }

    /// Every score by itself, in float64.
    fn slowly(&self) -> (Array3<f32>, Array2<f32>) {
        let (heads, tokens, _) = self.query.dim();
        let join = |a: &Array3<f32>, b: &Array3<f32>| concatenate(Axis(1), &[a.view(), b.view()]).unwrap();
        let (keys, values) = (join(&self.carried.0, &self.own.0), join(&self.carried.1, &self.own.1));
        let (num_carried, group) = (keys.dim().1 - tokens, heads / keys.dim().0);
        let of = |key: usize| self.segments.iter().find(|segment| key < segment.end).unwrap();
        let position = |key: usize| of(key).position + key - of(key).start;
        let row = |array: ArrayView3<'_, f32>, head: usize, token: usize| -> Vec<f64> {
            (0..array.dim().2).map(|column| f64::from(array[[head, token, column]])).collect()
        };
        let mut out = Array3::zeros((tokens, heads, values.dim().2));
        let mut log_sum_exp = Array2::zeros((tokens, heads));
        for token in 0..tokens {
            for head in 0..heads {
                let at = num_carried + token;
                let query = row(self.query.view(), head, token);
                let (mut sum, mut weighted) = (0.0, vec![0.0; values.dim().2]);
                for key in 0..=at {
                    let far =
                        self.window.is_some_and(|window| position(at) - position(key).min(position(at)) >= window);
                    if at >= of(key).subtree_end || far {
                        continue;
                    }
                    let products = query.iter().zip(row(keys.view(), head / group, key)).map(|(a, b)| a * b);
                    let mut score = products.sum::<f64>() * 0.3;
                    if let Some(cap) = self.softcap.map(f64::from) {
                        score = cap * (score / cap).tanh();
                    }
                    sum += score.exp();
                    for (weighted, value) in weighted.iter_mut().zip(row(values.view(), head / group, key)) {
                        *weighted += score.exp() * value;
                    }
                }
                log_sum_exp[[token, head]] = sum.ln() as f32;
                for (column, weighted) in weighted.into_iter().enumerate() {
                    out[[token, head, column]] = (weighted / sum) as f32;
                }
            }
        }
        (out, log_sum_exp)
    }
}

/// Gradients with respect to queries, keys and values, in the layout of [`Gradients`].
type Derivatives = [Vec<f32>; 3];

impl Call {
    /// The same with all keys the batch's own.
    fn without_carrying(mut self) -> Self {
        let missing = self.carried.0.dim().1;
        let longer =
            |array: &Array3<f32>, front: ArrayView3<'_, f32>| concatenate(Axis(1), &[front, array.view()]).unwrap();
        let (heads, _, size) = self.query.dim();
        let front = Array3::from_shape_fn((heads, missing, size), |(head, token, column)| {
            (head + 3 * token + 5 * column) as f32 % 1.7 - 0.8
        });
        self.query = longer(&self.query, front.view());
        self.own = (longer(&self.own.0, self.carried.0.view()), longer(&self.own.1, self.carried.1.view()));
        let empty = |array: &Array3<f32>| Array3::zeros((array.dim().0, 0, array.dim().2));
        self.carried = (empty(&self.own.0), empty(&self.own.1));
        self
    }

    /// What the gradient of the output is taken to be: `[T, heads, value size]`.
    fn output_gradient(&self) -> Array3<f32> {
        let (heads, tokens, _) = self.query.dim();
        Array3::from_shape_fn((tokens, heads, self.own.1.dim().2), |(token, head, column)| {
            (7 * token + 3 * head + 11 * column) as f32 % 2.3 - 1.1
        })
    }

    /// Likewise of the log-sum-exp: `[T, heads]`.
    fn log_sum_exp_gradient(&self) -> Array2<f32> {
        let (heads, tokens, _) = self.query.dim();
        Array2::from_shape_fn((tokens, heads), |(token, head)| (5 * token + head) as f32 % 1.9 - 1.0)
    }

    fn differentiate_on(&self, processor: impl Processor) -> Derivatives {
        let (out, log_sum_exp) = self.run_on(processor);
        let (gradient, of_sums) = (self.output_gradient(), self.log_sum_exp_gradient());
        let forward = ForwardState {
            out: out.view(),
            log_sum_exp: log_sum_exp.view(),
            out_gradient: gradient.view(),
            log_sum_exp_gradient: of_sums.view(),
        };
        let mut found = [&self.query, &self.own.0, &self.own.1].map(|of| vec![f32::NAN; of.len()]);
        let [query, key, value] = &mut found;
        self.attention().differentiate_on(processor, &forward, Gradients { query, key, value }, &Threads(2)).unwrap();
        found
    }

    /// Every weight by itself, in float64.
    fn differentiate_slowly(&self) -> Derivatives {
        let (heads, tokens, size) = self.query.dim();
        let (key_heads, value_size) = (self.own.0.dim().0, self.own.1.dim().2);
        let group = heads / key_heads;
        let (out, log_sum_exp) = self.slowly();
        let of = |key: usize| self.segments.iter().find(|segment| key < segment.end).unwrap();
        let position = |key: usize| of(key).position + key - of(key).start;
        let (gradient, of_sums) = (self.output_gradient(), self.log_sum_exp_gradient());
        let [mut for_query, mut for_key, mut for_value] =
            [heads * tokens * size, key_heads * tokens * size, key_heads * tokens * value_size]
                .map(|len| vec![0.0; len]);
        for (token, head) in (0..tokens).flat_map(|token| (0..heads).map(move |head| (token, head))) {
            let key_head = head / group;
            let query_at = ((key_head * tokens + token) * group + head % group) * size;
            let product = |value: &dyn Fn(usize) -> f32| -> f64 {
                (0..value_size).map(|c| f64::from(value(c)) * f64::from(gradient[[token, head, c]])).sum()
            };
            let along = product(&|column| out[[token, head, column]]) - f64::from(of_sums[[token, head]]);
            for key in 0..=token {
                let far =
                    self.window.is_some_and(|window| position(token) - position(key).min(position(token)) >= window);
                if token >= of(key).subtree_end || far {
                    continue;
                }
                let numbers = |column: usize| {
                    (f64::from(self.query[[head, token, column]]), f64::from(self.own.0[[key_head, key, column]]))
                };
                let mut score = (0..size).map(|column| numbers(column).0 * numbers(column).1).sum::<f64>() * 0.3;
                let mut slope = 0.3;
                if let Some(cap) = self.softcap.map(f64::from) {
                    slope *= 1.0 - (score / cap).tanh().powi(2);
                    score = cap * (score / cap).tanh();
                }
                let weight = (score - f64::from(log_sum_exp[[token, head]])).exp();
                let for_score = weight * (product(&|column| self.own.1[[key_head, key, column]]) - along) * slope;
                for column in 0..size {
                    let (query, of_key) = numbers(column);
                    for_query[query_at + column] += for_score * of_key;
                    for_key[(key_head * tokens + key) * size + column] += for_score * query;
                }
                for column in 0..value_size {
                    let gradient = f64::from(gradient[[token, head, column]]);
                    for_value[(key_head * tokens + key) * value_size + column] += weight * gradient;
                }
            }
        }
        [for_query, for_key, for_value].map(|numbers| numbers.into_iter().map(|number| number as f32).collect())
    }
}

/// Lengths of segments and how far above the one before them each hangs, as segments depth-first.
fn segments(shape: &[(usize, usize)]) -> Vec<Segment> {
    let mut all: Vec<Segment> = Vec::new();
    let mut path: Vec<usize> = Vec::new();
    for &(length, above) in shape {
        path.truncate(path.len().saturating_sub(above));
        let start = all.last().map_or(0, |last| last.end);
        let position =
            path.last().map_or(0, |&parent: &usize| all[parent].position + all[parent].end - all[parent].start);
        all.push(Segment { start, end: start + length, subtree_end: start + length, position });
        path.push(all.len() - 1);
        for &segment in &path {
            all[segment].subtree_end = start + length;
        }
    }
    all
}

fn calls() -> impl Strategy<Value = Call> {
    let shape = proptest::collection::vec((1..90_usize, 0..4_usize), 1..7);
    let heads = proptest::sample::select(vec![(1, 1), (2, 3), (1, 8), (3, 1)]);
    let sizes = proptest::sample::select(vec![(8, 8), (16, 5), (24, 80), (3, 130)]);
    let window = proptest::option::of(1..100_usize);
    let softcap = proptest::option::of(0.5..4.0_f32);
    (shape, heads, sizes, window, softcap, any::<u64>()).prop_map(
        |(shape, (key_heads, group), (size, value_size), window, softcap, seed)| {
            let segments = segments(&shape);
            // What is carried is the first segment; a trie of one segment carries nothing.
            let carried = if segments.len() > 1 { segments[0].end } else { 0 };
            let tokens = segments[segments.len() - 1].end - carried;
            let mut state = seed | 1;
            let mut number = move || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1 << 22) as f32 - 2.0
            };
            let mut array = |heads, tokens, size| Array3::from_shape_simple_fn((heads, tokens, size), &mut number);
            Call {
                query: array(key_heads * group, tokens, size),
                carried: (array(key_heads, carried, size), array(key_heads, carried, value_size)),
                own: (array(key_heads, tokens, size), array(key_heads, tokens, value_size)),
                segments,
                window,
                softcap,
            }
        },
    )
}

fn assert_close(found: &(Array3<f32>, Array2<f32>), expected: &(Array3<f32>, Array2<f32>), on: &str) {
    for (found, expected) in found.0.iter().zip(&expected.0).chain(found.1.iter().zip(&expected.1)) {
        assert!((found - expected).abs() <= 5e-6 + 5e-6 * expected.abs(), "{found} is not {expected} with {on}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn every_processor_attends_as_the_definition_says(call in calls()) {
        let expected = call.slowly();
        assert_close(&call.run_on(pulp::Arch::new()), &expected, "this processor's best");
        assert_close(&call.run_on(Chosen(Scalar)), &expected, "plain instructions");
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = pulp::x86::V3::try_new() {
            assert_close(&call.run_on(Chosen(avx2)), &expected, "AVX2");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn every_processor_differentiates_as_the_definition_says(call in calls()) {
        let call = call.without_carrying();
        let expected = call.differentiate_slowly();
        let close = |found: Derivatives, on: &str| {
            for (name, (found, expected)) in ["queries", "keys", "values"].iter().zip(found.iter().zip(&expected)) {
                let largest = expected.iter().fold(1.0_f32, |largest, number| largest.max(number.abs()));
                for (&found, &expected) in found.iter().zip(expected) {
                    assert!((found - expected).abs() <= 2e-5 * largest, "{found}, not {expected}, for {name} with {on}");
                }
            }
        };
        close(call.differentiate_on(pulp::Arch::new()), "this processor's best");
        close(call.differentiate_on(Chosen(Scalar)), "plain instructions");
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = pulp::x86::V3::try_new() {
            close(call.differentiate_on(Chosen(avx2)), "AVX2");
        }
    }
}

fn small(segments: Vec<Segment>) -> Call {
    let array = |tokens| Array3::from_elem((1, tokens, 2), 1.0);
    let (carried, own) = ((array(0), array(0)), (array(3), array(3)));
    Call { query: array(3), carried, own, segments, window: None, softcap: None }
}

#[test]
fn a_value_that_is_not_a_number_is_not_lost() {
    for cap in [None, Some(2.0)] {
        let mut call = small(segments(&[(3, 0)]));
        call.softcap = cap;
        call.own.0[[0, 1, 0]] = f32::NAN;
        let (out, log_sum_exp) = call.run_on(pulp::Arch::new());
        assert!(out.index_axis(Axis(0), 0).iter().all(|number| number.is_finite()));
        assert!(out.index_axis(Axis(0), 1).iter().all(|number| number.is_nan()));
        assert!(log_sum_exp[[2, 0]].is_nan());
    }
}

#[test]
fn what_does_not_fit_together_is_an_error() {
    let fails = |call: &Call, what: &str| {
        let error = call.attention().run(&mut [0.0; 6], &mut [0.0; 3], &Threads(1)).unwrap_err().to_string();
        assert!(error.contains(what), "{error} does not say {what}");
    };
    fails(&small(segments(&[(2, 0)])), "segments are not all its keys");
    let gap = Segment { start: 1, end: 3, subtree_end: 3, position: 0 };
    fails(&small(vec![gap]), "segments are not one after another");
    let mut call = small(segments(&[(3, 0)]));
    call.own.1 = Array3::zeros((1, 2, 2));
    fails(&call, "values are not shaped like its keys");
    call.own.1 = Array3::zeros((1, 3, 3));
    fails(&call, "outputs");
    call.query = Array3::zeros((1, 4, 2));
    fails(&call, "not those of its queries");
}

#[test]
fn a_gradient_that_does_not_fit_is_an_error() {
    let fails = |call: &Call, len: usize, what: &str| {
        let tokens = call.query.dim().1;
        let (out, sums) = (Array3::zeros((tokens, 1, 2)), Array2::zeros((tokens, 1)));
        let forward = ForwardState {
            out: out.view(),
            log_sum_exp: sums.view(),
            out_gradient: out.view(),
            log_sum_exp_gradient: sums.view(),
        };
        let (mut query, mut key, mut value) = (vec![0.0; len], vec![0.0; 6], vec![0.0; 6]);
        let gradients = Gradients { query: &mut query, key: &mut key, value: &mut value };
        let error = call.attention().differentiate(&forward, gradients, &Threads(1)).unwrap_err().to_string();
        assert!(error.contains(what), "{error} does not say {what}");
    };
    fails(&small(segments(&[(3, 0)])), 5, "gradients of an attention call do not fit");
    let mut call = small(segments(&[(2, 0), (3, 0)]));
    call.carried = (Array3::zeros((1, 2, 2)), Array3::zeros((1, 2, 2)));
    fails(&call, 6, "carried over has no gradient");
}
