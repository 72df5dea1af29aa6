//! Statistics of right and wrong answers, and of the probabilities behind them.
//!
//! Every function says its formula and where it comes from. Nothing is drawn at random.

use crate::error::{Error, Result};

/// The two ends of an interval.
pub type Interval = (f64, f64);

/// Wilson's score interval for a share of `successes` in `n`.
///
/// With p the share and z the normal quantile: `(p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)`. Unlike `p ± z·stderr` it stays within 0
/// and 1 and covers near them. Wilson 1927, JASA 22(158); recommended by Brown, Cai and `DasGupta` 2001, Statistical Science 16(2).
///
/// ```
/// use wmdp_core::scores::stats::wilson;
///
/// let (low, high) = wilson(2, 8, 0.95)?;
/// assert!((low - 0.0715).abs() < 1e-4 && (high - 0.5907).abs() < 1e-4);
/// # Ok::<(), wmdp_core::Error>(())
/// ```
///
/// # Errors
/// [`Error::InvalidArgument`] if `n` is 0 or less than `successes`, or `confidence` is not between 0 and 1.
pub fn wilson(successes: u64, n: u64, confidence: f64) -> Result<Interval> {
    if n == 0 || successes > n {
        return Err(Error::InvalidArgument(format!("{successes} of {n} is no share")));
    }
    let z = normal_quantile(confidence)?;
    let (count, share) = (n as f64, successes as f64 / n as f64);
    let scale = 1.0 + z * z / count;
    let middle = (share + z * z / (2.0 * count)) / scale;
    let half = z / scale * (share * (1.0 - share) / count + z * z / (4.0 * count * count)).sqrt();
    // Exactly 0 and 1 at the ends, which rounding would miss.
    let low = if successes == 0 { 0.0 } else { middle - half };
    let high = if successes == n { 1.0 } else { middle + half };
    Ok((low, high))
}

/// A float that holds a whole number, as an index; none here is negative.
#[allow(clippy::cast_sign_loss)]
fn whole(value: f64) -> usize {
    value as usize
}

/// Standard error of a mean over values that come in clusters, whose values may depend on each other.
///
/// `√(G/(G-1) · Σ_clusters (Σ_in_cluster (x - mean))²) / n` for G clusters: the cluster-robust variance of Liang and Zeger 1986 (Biometrika
/// 73(1)) for a mean, with the small-sample factor of Cameron and Miller 2015 (J. Human Resources 50(2), "CR1"). Proposed for
/// evaluations by Miller 2024, arXiv:2411.00640. `clusters` numbers the cluster of each value.
///
/// # Errors
/// [`Error::InvalidArgument`] if the lists differ in length, there are fewer than two clusters, or a value is not finite.
pub fn clustered_stderr(values: &[f64], clusters: &[i64]) -> Result<f64> {
    if values.len() != clusters.len() {
        return Err(Error::InvalidArgument(format!(
            "{} values cannot be in {} clusters: one is needed for each value",
            values.len(),
            clusters.len()
        )));
    }
    check_finite(values)?;
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let mut sums = std::collections::BTreeMap::<i64, f64>::new();
    for (value, cluster) in values.iter().zip(clusters) {
        *sums.entry(*cluster).or_default() += value - mean;
    }
    if sums.len() < 2 {
        return Err(Error::InvalidArgument("an error between clusters needs two of them or more".to_owned()));
    }
    let groups = sums.len() as f64;
    Ok((groups / (groups - 1.0) * sums.values().map(|sum| sum * sum).sum::<f64>()).sqrt() / n)
}

/// The exact two-sided binomial test: how likely a count at least as unlikely as `successes` in `n` is if each has the given chance.
///
/// All outcomes that are no more likely than the one seen count (the "minimum likelihood" method, as in R's `binom.test` and
/// `scipy.stats.binomtest`; with their tolerance of 1e-7 for outcomes equally likely). Clopper and Pearson's test, by the formula.
///
/// # Errors
/// [`Error::InvalidArgument`] if `successes` is more than `n`, or the chance is not between 0 and 1 (exclusive).
pub fn binomial_test(successes: u64, n: u64, chance: f64) -> Result<f64> {
    if successes > n || !(chance > 0.0 && chance < 1.0) {
        return Err(Error::InvalidArgument(format!(
            "{successes} of {n} cannot be tested against a chance of {chance}"
        )));
    }
    // Probabilities relative to the likeliest outcome, from there outwards by their ratio: no factorials, and nothing overflows.
    let likeliest = (whole(((n + 1) as f64 * chance).floor()) as u64).min(n);
    let odds = chance / (1.0 - chance);
    let mut relative = vec![0.0; n as usize + 1];
    relative[likeliest as usize] = 1.0;
    for k in likeliest..n {
        relative[k as usize + 1] = relative[k as usize] * odds * (n - k) as f64 / (k + 1) as f64;
    }
    for k in (1..=likeliest).rev() {
        relative[k as usize - 1] = relative[k as usize] * k as f64 / ((n - k + 1) as f64 * odds);
    }
    let seen = relative[successes as usize] * (1.0 + 1e-7);
    let mut extreme: Vec<f64> = relative.iter().copied().filter(|&probability| probability <= seen).collect();
    // The small ones first, lest they be lost.
    extreme.sort_unstable_by(f64::total_cmp);
    relative.sort_unstable_by(f64::total_cmp);
    Ok((extreme.iter().sum::<f64>() / relative.iter().sum::<f64>()).min(1.0))
}

/// The exact `McNemar` test between two runs over the same questions.
///
/// Only questions on which the runs differ tell them apart; if neither were better, each such question would be as likely to change one
/// way as the other. `McNemar` 1947, Psychometrika 12(2); exact by the binomial distribution. 1 if nothing changed.
///
/// ```
/// // Four answers went wrong and none right: of 16 outcomes as likely, that one and its opposite.
/// assert_eq!(wmdp_core::scores::stats::mcnemar(4, 0)?, 0.125);
/// # Ok::<(), wmdp_core::Error>(())
/// ```
///
/// # Errors
/// None for counts that fit in memory; those of [`binomial_test`].
pub fn mcnemar(right_to_wrong: u64, wrong_to_right: u64) -> Result<f64> {
    binomial_test(right_to_wrong, right_to_wrong + wrong_to_right, 0.5)
}

/// Tango's score interval for the difference of two paired shares: how much the share of right answers changed over `n` questions.
///
/// `right_to_wrong` of them were right in the first run alone, `wrong_to_right` in the second alone. The interval holds every
/// difference that the score test does not reject: `|won - lost - nδ| ≤ z √(n (2q + δ(1 - δ)))`, where q is the share of `right_to_wrong`
/// that is likeliest if the difference is δ. It has a width even where nothing changed (Tango 1998, Statistics in Medicine 17(8)).
///
/// The score test at δ = 0 rejects somewhat sooner than the exact `McNemar` test. Where it does and the exact one does not, 1 is taken
/// off the left side (a continuity correction as that of Edwards 1948, Psychometrika 13(3)), which makes the test stricter than the
/// exact one. So the interval leaves out 0 just where [`mcnemar`] is below `1 - confidence`; this was checked for up to 1,200 changes
/// at the usual levels, and fails only beyond 0.999.
///
/// # Errors
/// [`Error::InvalidArgument`] if `n` is 0 or less than the questions that changed, or `confidence` is not between 0 and 1.
pub fn paired_interval(right_to_wrong: u64, wrong_to_right: u64, n: u64, confidence: f64) -> Result<Interval> {
    if n == 0 || right_to_wrong.checked_add(wrong_to_right).is_none_or(|changed| changed > n) {
        return Err(Error::InvalidArgument(format!(
            "of {n} questions, {right_to_wrong} and {wrong_to_right} cannot have changed"
        )));
    }
    let z = normal_quantile(confidence)?;
    let pairs = Pairs { lost: right_to_wrong as f64, won: wrong_to_right as f64, n: n as f64 };
    let (low, high) = (pairs.end(z, 0.0, -1.0), pairs.end(z, 0.0, 1.0));
    if (low > 0.0 || high < 0.0) && mcnemar(right_to_wrong, wrong_to_right)? >= 1.0 - confidence {
        return Ok((pairs.end(z, 1.0, -1.0), pairs.end(z, 1.0, 1.0)));
    }
    Ok((low, high))
}

/// How many of n questions changed either way.
struct Pairs {
    lost: f64,
    won: f64,
    n: f64,
}

impl Pairs {
    /// Where the score reaches z, between the estimate and `limit` (-1 or 1), by bisection: the score falls with the difference.
    fn end(&self, z: f64, correction: f64, limit: f64) -> f64 {
        let mut inside = (self.won - self.lost) / self.n;
        let mut outside = limit;
        if self.score(limit, correction).abs() <= z {
            return limit;
        }
        for _ in 0..100 {
            let middle = f64::midpoint(inside, outside);
            if self.score(middle, correction).abs() <= z { inside = middle } else { outside = middle }
        }
        inside
    }

    /// The score test's statistic for a difference.
    fn score(&self, difference: f64, correction: f64) -> f64 {
        let Self { lost, won, n } = *self;
        // The likeliest share of `lost` solves a q² + b q + c = 0.
        let a = 2.0 * n;
        let b = (2.0 * n - won + lost) * difference - won - lost;
        let c = -lost * difference * (1.0 - difference);
        let root = (b * b - 4.0 * a * c).max(0.0).sqrt();
        // Either form of the same root, whichever adds numbers of one sign.
        let share = if b > 0.0 { -2.0 * c / (b + root) } else { (root - b) / (2.0 * a) };
        let variance = n * (2.0 * share + difference * (1.0 - difference));
        let distance = won - lost - n * difference;
        let corrected = (distance.abs() - correction).max(0.0).copysign(distance);
        if corrected == 0.0 { 0.0 } else { corrected / variance.max(0.0).sqrt() }
    }
}

/// Holm's correction of p-values for how many there are.
///
/// The i-th smallest of m is multiplied by m - i + 1, made no smaller than the ones before it, and at most 1. Keeps the chance of any false
/// discovery below the level, whatever the tests' dependence. Holm 1979, Scandinavian Journal of Statistics 6(2).
///
/// ```
/// assert_eq!(wmdp_core::scores::stats::holm(&[0.25, 0.125, 1.0])?, [0.5, 0.375, 1.0]);
/// # Ok::<(), wmdp_core::Error>(())
/// ```
///
/// # Errors
/// [`Error::InvalidArgument`] if one is not between 0 and 1.
pub fn holm(p_values: &[f64]) -> Result<Vec<f64>> {
    if let Some(bad) = p_values.iter().find(|p| !(0.0..=1.0).contains(*p)) {
        return Err(Error::InvalidArgument(format!("{bad} is no p-value")));
    }
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut corrected = vec![0.0; p_values.len()];
    let mut largest: f64 = 0.0;
    for (rank, &index) in order.iter().enumerate() {
        largest = largest.max(p_values[index] * (p_values.len() - rank) as f64).min(1.0);
        corrected[index] = largest;
    }
    Ok(corrected)
}

/// How far a number of right answers is from guessing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Chance {
    /// Share of right answers that guessing gives.
    pub share: f64,
    /// How many standard deviations of guessing the share of right answers is above it.
    pub z: f64,
    /// Two-sided p-value of [`binomial_test`].
    pub p: f64,
}

/// How far `correct` right answers are from guessing, given each question's number of choices.
///
/// Guessing is right with 1/k for k choices: in expectation `Σ 1/k`, with variance `Σ 1/k (1 - 1/k)`. If questions differ in k, the exact
/// test takes the mean of 1/k for all, which makes p somewhat too large, never too small in the center (the variance of a binomial is no
/// less than that of unequal chances with the same mean; Hoeffding 1956).
///
/// # Errors
/// [`Error::InvalidArgument`] if there is no question, a question has fewer than two choices, or more are right than there are.
pub fn against_chance(correct: u64, num_choices: &[usize]) -> Result<Chance> {
    if num_choices.is_empty() || num_choices.iter().any(|&choices| choices < 2) {
        return Err(Error::InvalidArgument("chance needs questions, each with two choices or more".to_owned()));
    }
    let n = num_choices.len() as f64;
    let share = num_choices.iter().map(|&choices| 1.0 / choices as f64).sum::<f64>() / n;
    let variance = num_choices.iter().map(|&choices| (1.0 - 1.0 / choices as f64) / choices as f64).sum::<f64>();
    let p = binomial_test(correct, num_choices.len() as u64, share)?;
    Ok(Chance { share, z: (correct as f64 - n * share) / variance.sqrt(), p })
}

/// Where each question's choices lie in a list by choice.
#[derive(Debug, Clone)]
pub struct Choices<'a> {
    loglikelihood: &'a [f64],
    offsets: Vec<usize>,
}

impl<'a> Choices<'a> {
    /// Log-likelihoods of choices, question after question; those of question `q` are `offsets[q]` up to `offsets[q + 1]`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the offsets do not cut the list into questions of one choice or more, or a question's
    /// log-likelihoods are not numbers of which one is above negative infinity; names the question.
    pub fn new(loglikelihood: &'a [f64], offsets: &[i64]) -> Result<Self> {
        let rising = offsets.len() > 1 && offsets[0] == 0 && offsets.windows(2).all(|pair| pair[0] < pair[1]);
        let offsets: Vec<usize> = offsets.iter().filter_map(|&offset| usize::try_from(offset).ok()).collect();
        if !rising || offsets.last() != Some(&loglikelihood.len()) {
            return Err(Error::InvalidArgument(format!(
                "the offsets of choices must rise from 0 to their number, {}",
                loglikelihood.len()
            )));
        }
        let found = Self { loglikelihood, offsets };
        for (index, scores) in found.iter().enumerate() {
            let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            if scores.iter().any(|score| score.is_nan()) || !highest.is_finite() {
                return Err(Error::InvalidArgument(format!(
                    "question {index}: the log-likelihoods {scores:?} give no probabilities"
                )));
            }
        }
        Ok(found)
    }

    fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    fn iter(&self) -> impl Iterator<Item = &'a [f64]> + '_ {
        self.offsets.windows(2).map(|pair| &self.loglikelihood[pair[0]..pair[1]])
    }

    /// The probability of each choice among its question's: the softmax of the log-likelihoods.
    #[must_use]
    pub fn probabilities(&self) -> Vec<f64> {
        self.iter().flat_map(softmax).collect()
    }
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exponentials: Vec<f64> = scores.iter().map(|score| (score - highest).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.iter().map(|value| value / sum).collect()
}

/// How far probabilities can be believed.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    /// Expected calibration error: over the bins, weighted by size, how far mean confidence is from the share of right answers.
    pub ece: f64,
    /// lm-eval's Brier score: the mean over questions of `Σ_choices (probability - 1 if right else 0)²`; 0 is perfect, 2 the worst.
    pub brier: f64,
    /// Of each bin the number of questions.
    pub counts: Vec<u64>,
    /// Of each bin the mean probability of the predicted choice; NaN if the bin is empty.
    pub confidence: Vec<f64>,
    /// Of each bin the share of right answers; NaN if the bin is empty.
    pub accuracy: Vec<f64>,
}

/// Calibration of the probabilities that softmax over a question's choices gives.
///
/// Confidence is the probability of the predicted choice. Bin b of B holds confidences above b/B up to (b+1)/B; the lowest holds 0, too.
/// Naeini, Cooper and Hauskrecht 2015 (AAAI); Guo et al. 2017, arXiv:1706.04599. Brier 1950, Monthly Weather Review 78(1), over
/// classes as in lm-eval's `brier_score`.
///
/// # Errors
/// [`Error::InvalidArgument`] if there are no bins, or the right choices are not one for each question.
pub fn calibration(choices: &Choices<'_>, gold: &[i64], num_bins: usize) -> Result<Calibration> {
    if num_bins == 0 || gold.len() != choices.len() {
        return Err(Error::InvalidArgument(format!(
            "{num_bins} bins, {} right choices and {} questions: at least one bin is needed, and a right choice for each question",
            gold.len(),
            choices.len()
        )));
    }
    let mut counts = vec![0_u64; num_bins];
    let (mut confidence, mut right, mut brier) = (vec![0.0; num_bins], vec![0_u64; num_bins], 0.0);
    for (index, (scores, &gold)) in choices.iter().zip(gold).enumerate() {
        let gold = usize::try_from(gold).ok().filter(|&gold| gold < scores.len()).ok_or_else(|| {
            Error::InvalidArgument(format!("question {index}: {gold} is none of its {} choices", scores.len()))
        })?;
        let probabilities = softmax(scores);
        let predicted = crate::scores::aggregate::argmax(scores);
        let bin = whole((probabilities[predicted] * num_bins as f64).ceil()).clamp(1, num_bins) - 1;
        counts[bin] += 1;
        confidence[bin] += probabilities[predicted];
        right[bin] += u64::from(predicted == gold);
        let errors = probabilities.iter().enumerate().map(|(choice, p)| (p - f64::from(choice == gold)).powi(2));
        brier += errors.sum::<f64>();
    }
    let n = choices.len() as f64;
    let ece = confidence.iter().zip(&right).map(|(sum, &right)| (sum - right as f64).abs()).sum::<f64>() / n;
    let accuracy = right.iter().zip(&counts).map(|(&right, &count)| right as f64 / count as f64).collect();
    let confidence = confidence.iter().zip(&counts).map(|(sum, &count)| sum / count as f64).collect();
    Ok(Calibration { ece, brier: brier / n, counts, confidence, accuracy })
}

/// Pearson's chi-square test of counts against equal frequency: the statistic and its p-value.
///
/// `Σ (count - n/k)² / (n/k)` for k kinds, with k - 1 degrees of freedom. Pearson 1900.
///
/// # Errors
/// [`Error::InvalidArgument`] if there are fewer than two kinds or nothing was counted.
pub fn chi_square_uniform(counts: &[u64]) -> Result<(f64, f64)> {
    let n: u64 = counts.iter().sum();
    if counts.len() < 2 || n == 0 {
        return Err(Error::InvalidArgument("counts of two kinds or more are needed, not all of them 0".to_owned()));
    }
    let expected = n as f64 / counts.len() as f64;
    let statistic = counts.iter().map(|&count| (count as f64 - expected).powi(2) / expected).sum::<f64>();
    Ok((statistic, chi_square_tail(statistic, counts.len() as u32 - 1)))
}

fn check_confidence(confidence: f64) -> Result<()> {
    if confidence > 0.0 && confidence < 1.0 {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!("the confidence must lie between 0 and 1, as 0.95 does, not be {confidence}")))
}

fn check_finite(values: &[f64]) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => Err(Error::InvalidArgument(format!("value {index} is {}, which has no mean", values[index]))),
    }
}

/// The z for which a normal variable lies between -z and z with probability `confidence`: 1.96 for 0.95.
///
/// Newton's method; a normal variable's square is chi-square with one degree of freedom. Its tail is convex, so that steps from 0 do not
/// overshoot.
fn normal_quantile(confidence: f64) -> Result<f64> {
    check_confidence(confidence)?;
    let mut z: f64 = 0.0;
    for _ in 0..100 {
        let excess = chi_square_tail(z * z, 1) - (1.0 - confidence);
        let step = excess / ((2.0 / std::f64::consts::PI).sqrt() * (-z * z / 2.0).exp());
        z += step;
        if step.abs() <= 1e-15 * z {
            break;
        }
    }
    Ok(z)
}

/// The probability that a chi-square variable exceeds `x`: the regularized upper incomplete gamma function `Q(df/2, x/2)`.
///
/// By its power series where that converges fast, else by Legendre's continued fraction with Lentz's method (Press et al., Numerical
/// Recipes, section 6.2, give both).
fn chi_square_tail(statistic: f64, degrees_of_freedom: u32) -> f64 {
    if statistic <= 0.0 {
        return 1.0;
    }
    let (shape, half) = (f64::from(degrees_of_freedom) / 2.0, statistic / 2.0);
    let scale = (shape * half.ln() - half - ln_gamma_of_half(degrees_of_freedom)).exp();
    if half < shape + 1.0 { 1.0 - scale * lower_series(shape, half) } else { scale * upper_fraction(shape, half) }
}

/// `Σ half^i / (shape (shape + 1) ... (shape + i))`.
fn lower_series(shape: f64, half: f64) -> f64 {
    let (mut term, mut sum, mut factor) = (1.0 / shape, 1.0 / shape, shape);
    while term > sum * 1e-17 {
        factor += 1.0;
        term *= half / factor;
        sum += term;
    }
    sum
}

/// `1 / (half + 1 - shape - 1(1 - shape) / (half + 3 - shape - 2(2 - shape) / (half + 5 - shape - ...)))`.
fn upper_fraction(shape: f64, half: f64) -> f64 {
    let mut partial = half + 1.0 - shape;
    let mut above = f64::INFINITY;
    let mut below = 1.0 / partial;
    let mut fraction = below;
    for step in 1..10_000 {
        let step = f64::from(step);
        let numerator = -step * (step - shape);
        partial += 2.0;
        below = 1.0 / (numerator * below + partial);
        above = partial + numerator / above;
        let factor = above * below;
        fraction *= factor;
        if (factor - 1.0).abs() < 1e-16 {
            break;
        }
    }
    fraction
}

/// The logarithm of the gamma function at half of `twice`, from `Γ(1/2) = √π` or `Γ(1) = 1` upwards.
fn ln_gamma_of_half(twice: u32) -> f64 {
    let odd = twice % 2 == 1;
    let start = if odd { std::f64::consts::PI.sqrt().ln() } else { 0.0 };
    let first = if odd { 1 } else { 2 };
    start + (first..twice).step_by(2).map(|k| (f64::from(k) / 2.0).ln()).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_normal_quantile_is_the_one_of_the_tables() {
        for (confidence, z) in
            [(0.95, 1.959_963_984_540_054), (0.5, 0.674_489_750_196_081_7), (0.999, 3.290_526_731_491_925)]
        {
            assert!((normal_quantile(confidence).unwrap() - z).abs() < 1e-13, "{confidence}");
        }
        assert!(normal_quantile(1.0).is_err());
    }

    #[test]
    fn paired_intervals_have_a_width_and_agree_with_the_exact_test() {
        for (lost, won, n) in
            [(0, 0, 40), (4, 0, 392), (0, 4, 392), (6, 0, 392), (13, 4, 392), (60, 40, 1000), (3, 0, 3)]
        {
            let (low, high) = paired_interval(lost, won, n, 0.95).unwrap();
            assert!(-1.0 <= low && low < high && high <= 1.0, "{lost} {won} {n}: {low} {high}");
            let leaves_out = low > 0.0 || high < 0.0;
            assert_eq!(leaves_out, mcnemar(lost, won).unwrap() < 0.05, "{lost} {won} {n}: {low} {high}");
        }
        // Nothing changed: z² / (n + z²) either way, Wilson's end for none of n.
        let (low, high) = paired_interval(0, 0, 40, 0.95).unwrap();
        let (_, expected) = wilson(0, 40, 0.95).unwrap();
        assert!((high - expected).abs() < 1e-12 && (low + expected).abs() < 1e-12, "{low} {high} {expected}");
    }

    #[test]
    fn a_binomial_test_of_failures_is_that_of_successes() {
        for (successes, n, chance) in [(0, 1, 0.25), (3, 40, 0.5), (310, 763, 0.375), (9000, 18_000, 0.01)] {
            let p = binomial_test(successes, n, chance).unwrap();
            let mirrored = binomial_test(n - successes, n, 1.0 - chance).unwrap();
            assert!((p - mirrored).abs() <= 1e-9 * p, "{successes} {n} {chance}: {p} {mirrored}");
        }
    }

    #[test]
    fn what_is_no_data_is_refused() {
        assert!(binomial_test(1, 2, 0.0).is_err());
        assert!(binomial_test(3, 2, 0.5).is_err());
        assert!(wilson(2, 1, 0.95).is_err());
        assert!(paired_interval(2, 1, 2, 0.95).is_err());
        assert!(paired_interval(u64::MAX, 1, u64::MAX, 0.95).is_err());
        assert!(paired_interval(0, 0, 0, 0.95).is_err());
        assert!(clustered_stderr(&[1.0, 2.0], &[0, 0]).is_err());
        assert!(holm(&[1.5]).is_err());
        assert!(Choices::new(&[f64::NEG_INFINITY, f64::NEG_INFINITY], &[0, 2]).is_err());
        assert!(calibration(&Choices::new(&[0.0, -1.0], &[0, 2]).unwrap(), &[2], 10).is_err());
    }
}
