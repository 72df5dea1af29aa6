//! From log-likelihoods to predictions, accuracies and their standard errors, by lm-eval's definitions.

use crate::error::{Error, Result};
use crate::text::prompt::Prompts;

/// A metric of multiple-choice tasks, under lm-eval's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// `acc`: the choice of highest log-likelihood is the right one.
    Acc,
    /// `acc_norm`: the same after dividing each log-likelihood by the choice's length in characters, delimiter excluded.
    AccNorm,
}

impl Metric {
    /// The metric of that name.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is none.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "acc" => Ok(Self::Acc),
            "acc_norm" => Ok(Self::AccNorm),
            _ => Err(Error::InvalidArgument(format!("unknown metric {name:?}; known are \"acc\" and \"acc_norm\""))),
        }
    }

    /// Its name in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Acc => "acc",
            Self::AccNorm => "acc_norm",
        }
    }
}

/// One metric over the questions of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// For each question the index of the choice that the metric picks; the first of several equal ones.
    pub predicted: Vec<usize>,
    /// For each question whether that is the right choice.
    pub correct: Vec<bool>,
    /// Share of right answers.
    pub mean: f64,
    /// Its standard error: sample standard deviation (n - 1) over the square root of n. None for a single question.
    pub stderr: Option<f64>,
}

/// The scores of one task and what follows from them.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// For each question its first choice in the two lists below, then their length.
    pub choice_offsets: Vec<usize>,
    /// Log-likelihood of each choice, in nats.
    pub loglikelihood: Vec<f64>,
    /// Whether each token of the choice is the model's most likely one.
    pub is_greedy: Vec<bool>,
    /// Index of each question's right choice.
    pub answers: Vec<usize>,
    /// lm-eval's `acc`.
    pub acc: Score,
    /// lm-eval's `acc_norm`.
    pub acc_norm: Score,
    /// For each question how far the best choice is ahead of the runner-up, in nats; 0 is a tie.
    pub margin: Vec<f64>,
    /// For each question whether the margin is within the bound below which rounding may decide.
    pub near_tie: Vec<bool>,
}

impl Outcome {
    /// Number of questions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.answers.len()
    }

    /// Whether there are no questions; never so for what [`aggregate`] returns.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    /// The score of a metric.
    #[must_use]
    pub fn score(&self, metric: Metric) -> &Score {
        match metric {
            Metric::Acc => &self.acc,
            Metric::AccNorm => &self.acc_norm,
        }
    }
}

/// Turns the log-likelihoods of a task's choices, question after question, into predictions and accuracies.
///
/// A question is a near-tie if its best choice is at most `near_tie` nats ahead of the runner-up.
///
/// ```
/// use wmdp_core::scores::aggregate::aggregate;
/// use wmdp_core::text::prompt::Prompts;
///
/// let contexts = ["Which bird hoots?".to_owned(), "Which bird crows?".to_owned()];
/// let choices = vec![vec!["owl".to_owned(), "hen".to_owned()], vec!["jay".to_owned(), "cock".to_owned()]];
/// let prompts = Prompts::from_contexts(&contexts, choices, vec![0, 1], " ", "birds")?;
///
/// let outcome = aggregate(&prompts, &[-1.0, -3.0, -2.0, -2.5], &[false; 4], 0.01)?;
/// assert_eq!(outcome.acc.predicted, [0, 0]);
/// assert_eq!(outcome.acc.mean, 0.5);
/// assert_eq!(outcome.margin, [2.0, 0.5]);
/// # Ok::<(), wmdp_core::Error>(())
/// ```
///
/// # Errors
/// [`Error::InvalidArgument`] if the lists do not fit the prompts, there is no question, or a log-likelihood is none: NaN or
/// positive infinity.
pub fn aggregate(prompts: &Prompts, loglikelihood: &[f64], is_greedy: &[bool], near_tie: f64) -> Result<Outcome> {
    let choice_offsets = choice_offsets(prompts);
    let num_choices = choice_offsets[prompts.len()];
    if loglikelihood.len() != num_choices || is_greedy.len() != num_choices {
        return Err(Error::InvalidArgument(format!(
            "{} log-likelihoods and {} greedy flags do not fit prompts with {num_choices} choices",
            loglikelihood.len(),
            is_greedy.len()
        )));
    }
    if prompts.is_empty() {
        return Err(Error::InvalidArgument("there is no question to score".to_owned()));
    }
    let (mut predicted, mut predicted_norm, mut margin) = (Vec::new(), Vec::new(), Vec::new());
    for (question, choices) in prompts.choices.iter().enumerate() {
        let scores = &loglikelihood[choice_offsets[question]..choice_offsets[question + 1]];
        check(&prompts.source, question, scores)?;
        let best = argmax(scores);
        predicted.push(best);
        margin.push(ahead(scores, best));
        let per_character = scores.iter().zip(choices).map(|(score, choice)| score / choice.chars().count() as f64);
        predicted_norm.push(argmax(&per_character.collect::<Vec<_>>()));
    }
    Ok(Outcome {
        acc: score(predicted, &prompts.answers),
        acc_norm: score(predicted_norm, &prompts.answers),
        near_tie: margin.iter().map(|&margin| margin <= near_tie).collect(),
        margin,
        choice_offsets,
        loglikelihood: loglikelihood.to_vec(),
        is_greedy: is_greedy.to_vec(),
        answers: prompts.answers.clone(),
    })
}

fn choice_offsets(prompts: &Prompts) -> Vec<usize> {
    let ends = prompts.choices.iter().scan(0, |end, choices| {
        *end += choices.len();
        Some(*end)
    });
    std::iter::once(0).chain(ends).collect()
}

fn check(source: &str, question: usize, scores: &[f64]) -> Result<()> {
    match scores.iter().position(|&score| score.is_nan() || score == f64::INFINITY) {
        None => Ok(()),
        Some(choice) => Err(Error::InvalidArgument(format!(
            "{source}, row {}: the log-likelihood of choice {choice} is {}: the model's numbers overflowed; \
             load it with another dtype (float32 or bfloat16)",
            question + 1,
            scores[choice]
        ))),
    }
}

/// numpy's `argmax`: the first of the highest values, and the first NaN if there is one (0 / 0 for an empty choice).
pub(crate) fn argmax(values: &[f64]) -> usize {
    if let Some(nan) = values.iter().position(|value| value.is_nan()) {
        return nan;
    }
    let mut best = 0;
    for (index, &value) in values.iter().enumerate() {
        if value > values[best] {
            best = index;
        }
    }
    best
}

/// How far `scores[best]` is ahead of all others.
pub(crate) fn ahead(scores: &[f64], best: usize) -> f64 {
    if scores[best] == f64::NEG_INFINITY {
        return 0.0; // All choices are equally impossible; their difference would be NaN.
    }
    let others = scores.iter().enumerate().filter(|&(index, _)| index != best).map(|(_, &score)| score);
    scores[best] - others.fold(f64::NEG_INFINITY, f64::max)
}

fn score(predicted: Vec<usize>, answers: &[usize]) -> Score {
    let correct: Vec<bool> = predicted.iter().zip(answers).map(|(predicted, answer)| predicted == answer).collect();
    let n = correct.len() as f64;
    let mean = correct.iter().filter(|&&correct| correct).count() as f64 / n;
    // In question order and uncompensated: lm-eval's own sum, to the last bit.
    let squares: f64 = correct.iter().map(|&correct| (f64::from(u8::from(correct)) - mean).powi(2)).sum();
    let stderr = (correct.len() > 1).then(|| (squares / (n - 1.0)).sqrt() / n.sqrt());
    Score { predicted, correct, mean, stderr }
}

/// The mean of several tasks and its standard error, by lm-eval's formulas for groups.
///
/// Weighted by size, the mean is that over all questions, and the standard error comes from the pooled variance within the tasks
/// (`pooled_sample_stderr`); what the tasks differ by does not enter. Otherwise each task counts the same (`unweighted_mean_stderr`).
/// The standard error is None as soon as one task has none.
///
/// # Errors
/// [`Error::InvalidArgument`] if the lists differ in length, or are empty, or a task has no question.
pub fn pool(
    means: &[f64],
    stderrs: &[Option<f64>],
    sizes: &[usize],
    weight_by_size: bool,
) -> Result<(f64, Option<f64>)> {
    if means.is_empty() || means.len() != stderrs.len() || means.len() != sizes.len() {
        return Err(Error::InvalidArgument(format!(
            "{} means, {} standard errors and {} sizes do not make a group: there must be as many of each, and at least one",
            means.len(),
            stderrs.len(),
            sizes.len()
        )));
    }
    if let Some(task) = sizes.iter().position(|&size| size == 0) {
        return Err(Error::InvalidArgument(format!("task {task} of the group has no question")));
    }
    let k = means.len() as f64;
    let total: f64 = sizes.iter().sum::<usize>() as f64;
    let known: Option<Vec<f64>> = stderrs.iter().copied().collect();
    if !weight_by_size {
        let stderr = known.map(|known| known.iter().map(|stderr| stderr.powi(2)).sum::<f64>().sqrt() / k);
        return Ok((means.iter().sum::<f64>() / k, stderr));
    }
    let mean = means.iter().zip(sizes).map(|(mean, &size)| mean * size as f64).sum::<f64>() / total;
    let stderr = known.filter(|_| total > k).map(|known| {
        let squares = known.iter().zip(sizes).map(|(stderr, &size)| (size as f64 - 1.0) * stderr.powi(2) * size as f64);
        (squares.sum::<f64>() / (total - k) / total).sqrt()
    });
    Ok((mean, stderr))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prompts(choices: &[&[&str]], answers: &[usize]) -> Prompts {
        let choices: Vec<Vec<String>> =
            choices.iter().map(|list| list.iter().map(|&text| text.to_owned()).collect()).collect();
        Prompts::from_contexts(&vec![String::new(); choices.len()], choices, answers.to_vec(), " ", "test").unwrap()
    }

    fn outcome(choices: &[&[&str]], answers: &[usize], scores: &[f64]) -> Outcome {
        aggregate(&prompts(choices, answers), scores, &vec![false; scores.len()], 0.01).unwrap()
    }

    #[test]
    fn questions_may_differ_in_their_number_of_choices() {
        let outcome = outcome(&[&["A", "B"], &["A", "B", "C"]], &[1, 2], &[-2.0, -1.0, -3.0, -0.5, -1.5]);
        assert_eq!(outcome.choice_offsets, [0, 2, 5]);
        assert_eq!(outcome.acc.predicted, [1, 1]);
        assert_eq!(outcome.acc.correct, [true, false]);
        assert_eq!(outcome.margin, [1.0, 1.0]);
        assert!((outcome.acc.mean - 0.5).abs() < 1e-15);
        assert_eq!(outcome.acc.stderr, Some(0.5));
    }

    #[test]
    fn the_first_of_tied_choices_is_picked_and_flagged() {
        let outcome = outcome(&[&["A", "B", "C"], &["A", "B", "C"]], &[1, 1], &[-1.0, -0.5, -0.5, -1.0, -0.2, -0.205]);
        assert_eq!(outcome.acc.predicted, [1, 1]);
        assert_eq!(outcome.near_tie, [true, true]);
        assert!(outcome.margin[0].abs() < f64::EPSILON);
    }

    #[test]
    fn acc_norm_counts_characters_not_bytes() {
        // Two characters, four bytes: by bytes the first choice would win.
        let outcome = outcome(&[&["éé", "abc"]], &[1], &[-2.0, -2.7]);
        assert_eq!(outcome.acc.predicted, [0]);
        assert_eq!(outcome.acc_norm.predicted, [1]);
    }

    #[test]
    fn impossible_choices_tie_and_an_empty_one_divides_as_numpy_does() {
        let impossible = f64::NEG_INFINITY;
        let outcome = outcome(&[&["A", "B"], &["A", ""]], &[0, 0], &[impossible, impossible, -1.0, 0.0]);
        assert_eq!(outcome.margin, [0.0, 1.0]);
        assert_eq!(outcome.acc_norm.predicted, [0, 1]);
    }

    #[test]
    fn one_question_has_no_standard_error() {
        assert_eq!(outcome(&[&["A", "B"]], &[0], &[-1.0, -2.0]).acc.stderr, None);
    }

    #[test]
    fn a_score_that_is_no_log_likelihood_names_its_question() {
        let prompts = prompts(&[&["A", "B"], &["A", "B"]], &[0, 0]);
        for bad in [f64::NAN, f64::INFINITY] {
            let error = aggregate(&prompts, &[-1.0, -1.0, -1.0, bad], &[false; 4], 0.0).unwrap_err().to_string();
            assert!(error.contains("test, row 2: the log-likelihood of choice 1"), "{error}");
        }
        assert!(aggregate(&prompts, &[-1.0; 3], &[false; 3], 0.0).is_err());
    }

    #[test]
    fn groups_need_tasks_with_questions() {
        assert!(pool(&[], &[], &[], true).is_err());
        assert!(pool(&[0.5], &[None], &[0], true).is_err());
        assert_eq!(pool(&[0.5, 1.0], &[Some(0.1), None], &[3, 1], true).unwrap(), (0.625, None));
    }

    proptest! {
        #[test]
        fn a_group_of_one_task_is_that_task(mean in 0.0..1.0, stderr in 0.0..0.5, size in 2usize..500) {
            for weight_by_size in [true, false] {
                let (pooled, pooled_stderr) = pool(&[mean], &[Some(stderr)], &[size], weight_by_size).unwrap();
                prop_assert!((pooled - mean).abs() < 1e-12);
                prop_assert!((pooled_stderr.unwrap() - stderr).abs() < 1e-12);
            }
        }
    }
}
