//! Questions asked with their choices in other orders, and what the order does to the answers.
//!
//! A model that knows the answer gives it wherever it stands; one that does not may still prefer a letter. An order says for each
//! place which of the original choices stands there, and is written as their letters: `BCDA` has the second choice first.

use crate::error::{Error, Result};
use crate::runtime::parallel::Cancel;
use crate::scores::aggregate::Outcome;
use crate::text::question::{Question, QuestionSet, letter};

/// Most choices whose orders are all asked: 24 orders of 4 choices, but 120 of 5.
const MOST_CHOICES_FOR_ALL: usize = 4;

/// Which orders a question's choices are put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orders {
    /// Each choice once in each place: the n rotations of n choices.
    Cyclic,
    /// All n! orders of n choices.
    All,
}

impl Orders {
    /// The set of orders of that name.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is none.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "cyclic" => Ok(Self::Cyclic),
            "all" => Ok(Self::All),
            _ => Err(Error::InvalidArgument(format!(
                "unknown choice orders {name:?}; known are \"cyclic\" (each choice once in each place) and \"all\""
            ))),
        }
    }

    /// The orders of `n` choices, sorted; the first one changes nothing.
    #[must_use]
    pub fn of(self, n: usize) -> Vec<Vec<usize>> {
        match self {
            Self::Cyclic => (0..n).map(|shift| (0..n).map(|place| (place + shift) % n).collect()).collect(),
            Self::All => permutations(n),
        }
    }
}

/// All orders of `n` choices, sorted.
fn permutations(n: usize) -> Vec<Vec<usize>> {
    let mut found: Vec<Vec<usize>> = vec![Vec::new()];
    for _ in 0..n {
        let mut longer = Vec::new();
        for order in &found {
            longer
                .extend((0..n).filter(|choice| !order.contains(choice)).map(|choice| [&order[..], &[choice]].concat()));
        }
        found = longer;
    }
    found
}

/// An order as the letters of the choices that stand in its places.
#[must_use]
pub fn label(order: &[usize]) -> String {
    order.iter().map(|&choice| letter(choice)).collect()
}

impl QuestionSet {
    /// Each question in every order of its choices but the original one, question after question.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming file and row if a question has too many choices for all their orders; [`Error::Cancelled`].
    pub fn permuted(&self, orders: Orders, cancel: &Cancel) -> Result<Self> {
        let mut questions = Vec::new();
        for (index, question) in self.questions.iter().enumerate() {
            cancel.check()?;
            let n = question.choices.len();
            if orders == Orders::All && n > MOST_CHOICES_FOR_ALL {
                let count: usize = (1..=n).product();
                return Err(Error::InvalidArgument(format!(
                    "{}, row {}: {n} choices have {count} orders, too many to ask; \"all\" is for at most \
                     {MOST_CHOICES_FOR_ALL} choices, \"cyclic\" asks {n} orders",
                    self.file,
                    index + 1
                )));
            }
            questions.extend(orders.of(n)[1..].iter().map(|order| reordered(question, order)));
        }
        Ok(self.with_questions(questions))
    }
}

fn reordered(question: &Question, order: &[usize]) -> Question {
    Question {
        choices: order.iter().map(|&choice| question.choices[choice].clone()).collect(),
        // An order holds every choice.
        answer: order.iter().position(|&choice| choice == question.answer).unwrap_or_default(),
        ..question.clone()
    }
}

/// The answer to a question in one order. Choices are numbered as in the question, not by place.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The order.
    pub order: Vec<usize>,
    /// The choice that the model picked.
    pub predicted: usize,
    /// Log-likelihood of each choice, in nats.
    pub loglikelihood: Vec<f64>,
}

/// A question's right choice and its answers in each order, the original one first.
#[derive(Debug, Clone, PartialEq)]
pub struct Answers {
    /// The right choice.
    pub right: usize,
    /// For each choice the first one with the same text.
    pub same_text: Vec<usize>,
    /// The answers.
    pub answers: Vec<Answer>,
}

impl Answers {
    /// The text that an answer picks, as the first choice that has it.
    fn content(&self, answer: &Answer) -> usize {
        self.same_text[answer.predicted]
    }
}

/// Puts together the answers to a task's questions and those to [`QuestionSet::permuted`] of them.
///
/// # Errors
/// [`Error::InvalidArgument`] if an outcome is of other questions; [`Error::Cancelled`].
pub fn answers(
    questions: &QuestionSet,
    orders: Orders,
    original: &Outcome,
    others: &Outcome,
    cancel: &Cancel,
) -> Result<Vec<Answers>> {
    let of_each: Vec<Vec<Vec<usize>>> =
        questions.questions.iter().map(|question| orders.of(question.choices.len())).collect();
    let num_others: usize = of_each.iter().map(|orders| orders.len() - 1).sum();
    if original.len() != of_each.len() || others.len() != num_others {
        return Err(Error::InvalidArgument(format!(
            "{} answers and {} in other orders do not fit {} questions with {num_others} other orders",
            original.len(),
            others.len(),
            of_each.len()
        )));
    }
    let mut next_other = 0..others.len();
    questions
        .questions
        .iter()
        .zip(of_each)
        .enumerate()
        .map(|(index, (question, orders))| {
            cancel.check()?;
            let first_with =
                |text: &String| question.choices.iter().position(|choice| choice == text).unwrap_or_default();
            let asked = std::iter::once((original, index)).chain(next_other.by_ref().map(|other| (others, other)));
            let answers = orders.into_iter().zip(asked).map(|(order, (outcome, asked))| answer(order, outcome, asked));
            Ok(Answers {
                right: question.answer,
                same_text: question.choices.iter().map(first_with).collect(),
                answers: answers.collect::<Result<_>>()?,
            })
        })
        .collect()
}

fn answer(order: Vec<usize>, outcome: &Outcome, question: usize) -> Result<Answer> {
    let scores = &outcome.loglikelihood[outcome.choice_offsets[question]..outcome.choice_offsets[question + 1]];
    if scores.len() != order.len() {
        return Err(Error::InvalidArgument(format!(
            "question {} was scored with {} choices, not {}",
            question + 1,
            scores.len(),
            order.len()
        )));
    }
    let mut loglikelihood = vec![0.0; order.len()];
    for (&choice, &score) in order.iter().zip(scores) {
        loglikelihood[choice] = score;
    }
    Ok(Answer { predicted: order[outcome.acc.predicted[question]], order, loglikelihood })
}

/// What the order of the choices does to the answers to some questions. Each question counts the same.
#[derive(Debug, Clone, PartialEq)]
pub struct OrderEffects {
    /// For each order, sorted, its label, the number of questions asked in it, and the share of right answers.
    pub orders: Vec<(String, usize, f64)>,
    /// Share of right answers over all orders.
    pub mean: f64,
    /// Sample standard deviation (n - 1) of the orders' accuracies; None if questions differ in their number of choices.
    pub sd: Option<f64>,
    /// Share of the other orders in which the answer is another text than in the original order.
    pub changed: f64,
    /// Share of questions that are answered with the same text in all orders.
    pub consistent: f64,
    /// For each letter the shares of right answers and of predictions that it has in the original order, and its share of
    /// predictions over all orders.
    pub letters: Vec<LetterShares>,
}

/// How often a letter is right and how often it is picked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LetterShares {
    /// The letter.
    pub letter: char,
    /// Share of questions whose right answer it is in the original order.
    pub right: f64,
    /// Share of questions it is the answer to in the original order.
    pub original: f64,
    /// Share of answers over all orders.
    pub all_orders: f64,
}

/// Sums up the answers to one or several tasks' questions.
///
/// # Errors
/// [`Error::InvalidArgument`] if there is no question.
pub fn effects<'a>(questions: impl IntoIterator<Item = &'a Answers>) -> Result<OrderEffects> {
    let questions: Vec<&Answers> = questions.into_iter().collect();
    if questions.is_empty() {
        return Err(Error::InvalidArgument("there is no question that was asked in several orders".to_owned()));
    }
    let mean_over = |value: &dyn Fn(&Answers) -> f64| {
        questions.iter().map(|question| value(question)).sum::<f64>() / questions.len() as f64
    };
    let orders = by_order(&questions);
    let same_size = questions.iter().all(|question| question.same_text.len() == questions[0].same_text.len());
    let most_choices = questions.iter().map(|question| question.same_text.len()).max().unwrap_or(0);
    Ok(OrderEffects {
        mean: mean_over(&|question| share(&question.answers, |answer| answer.predicted == question.right)),
        sd: same_size.then(|| sample_sd(&orders.iter().map(|&(_, _, accuracy)| accuracy).collect::<Vec<_>>())),
        changed: mean_over(&|question| {
            let original = question.content(&question.answers[0]);
            share(&question.answers[1..], |answer| question.content(answer) != original)
        }),
        consistent: mean_over(&|question| {
            let original = question.content(&question.answers[0]);
            f64::from(u8::from(question.answers.iter().all(|answer| question.content(answer) == original)))
        }),
        letters: (0..most_choices)
            .map(|place| {
                let stands_there = |answer: &Answer| answer.order.get(place) == Some(&answer.predicted);
                LetterShares {
                    letter: letter(place),
                    right: mean_over(&|question| f64::from(u8::from(question.right == place))),
                    original: mean_over(&|question| share(&question.answers[..1], stands_there)),
                    all_orders: mean_over(&|question| share(&question.answers, stands_there)),
                }
            })
            .collect(),
        orders,
    })
}

fn by_order(questions: &[&Answers]) -> Vec<(String, usize, f64)> {
    let mut counts = std::collections::BTreeMap::<(usize, &[usize]), (usize, usize)>::new();
    for question in questions {
        for answer in &question.answers {
            let (asked, right) = counts.entry((answer.order.len(), &answer.order)).or_default();
            *asked += 1;
            *right += usize::from(answer.predicted == question.right);
        }
    }
    counts.into_iter().map(|((_, order), (asked, right))| (label(order), asked, right as f64 / asked as f64)).collect()
}

fn share(answers: &[Answer], holds: impl Fn(&Answer) -> bool) -> f64 {
    answers.iter().filter(|answer| holds(answer)).count() as f64 / answers.len() as f64
}

fn sample_sd(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (values.len() as f64 - 1.0)).sqrt()
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;
    use crate::scores::aggregate::aggregate;
    use crate::text::prompt::Prompts;

    fn set(choices: &[&[&str]]) -> QuestionSet {
        let question = |choices: &&[&str]| Question {
            question: "q".to_owned(),
            choices: choices.iter().map(|&text| text.to_owned()).collect(),
            answer: 0,
            subject: None,
            extra: Map::new(),
        };
        QuestionSet {
            file: "birds".to_owned(),
            columns: vec![],
            questions: choices.iter().map(question).collect(),
            foreign: std::collections::BTreeMap::new(),
        }
    }

    /// A model that always answers with the first letter.
    fn first_letter(questions: &QuestionSet) -> Outcome {
        let choices: Vec<Vec<String>> = questions.questions.iter().map(|question| question.choices.clone()).collect();
        let scores: Vec<f64> =
            choices.iter().flat_map(|choices| (0..choices.len()).map(|place| -(place as f64))).collect();
        let rights = questions.questions.iter().map(|question| question.answer).collect();
        let contexts = vec!["c".to_owned(); choices.len()];
        let prompts = Prompts::from_contexts(&contexts, choices, rights, " ", "birds").unwrap();
        let greedy = vec![false; scores.len()];
        aggregate(&prompts, &scores, &greedy, 0.0).unwrap()
    }

    fn of(questions: &QuestionSet, orders: Orders) -> Vec<Answers> {
        let others = questions.permuted(orders, &Cancel::default()).unwrap();
        answers(questions, orders, &first_letter(questions), &first_letter(&others), &Cancel::default()).unwrap()
    }

    #[test]
    fn rotations_put_each_choice_in_each_place_and_all_orders_are_all() {
        assert_eq!(Orders::Cyclic.of(3), [[0, 1, 2], [1, 2, 0], [2, 0, 1]]);
        let all = Orders::All.of(4);
        assert_eq!((all.len(), label(&all[0]).as_str(), label(&all[23]).as_str()), (24, "ABCD", "DCBA"));
        assert!(all.is_sorted());
        let one = set(&[&["w", "x", "y"]]).permuted(Orders::Cyclic, &Cancel::default()).unwrap();
        assert_eq!(one.questions[0].choices, ["x", "y", "w"]);
        assert_eq!((one.questions[0].answer, one.questions[1].answer), (2, 1));
    }

    #[test]
    fn too_many_orders_are_refused() {
        let error = set(&[&["a", "b"], &["a", "b", "c", "d", "e"]])
            .permuted(Orders::All, &Cancel::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("birds, row 2: 5 choices have 120 orders"), "{error}");
    }

    #[test]
    fn a_model_that_sees_only_letters_is_found_out() {
        let found = effects(&of(&set(&[&["w", "x", "y", "z"]]), Orders::Cyclic)).unwrap();
        let accuracies = ["ABCD", "BCDA", "CDAB", "DABC"].iter().zip([1.0, 0.0, 0.0, 0.0]);
        assert_eq!(found.orders, accuracies.map(|(order, acc)| ((*order).to_owned(), 1, acc)).collect::<Vec<_>>());
        assert_eq!((found.mean, found.sd, found.changed, found.consistent), (0.25, Some(0.5), 1.0, 0.0));
        assert_eq!(found.letters[0], LetterShares { letter: 'A', right: 1.0, original: 1.0, all_orders: 1.0 });
    }

    #[test]
    fn choices_of_the_same_text_are_the_same_answer() {
        let found = effects(&of(&set(&[&["w", "w"]]), Orders::All)).unwrap();
        assert_eq!((found.mean, found.changed, found.consistent), (0.5, 0.0, 1.0));
    }

    #[test]
    fn questions_with_other_numbers_of_choices_have_orders_of_their_own() {
        let found = effects(&of(&set(&[&["w", "x"], &["w", "x", "y"]]), Orders::Cyclic)).unwrap();
        let labels: Vec<&str> = found.orders.iter().map(|(label, ..)| label.as_str()).collect();
        assert_eq!(labels, ["AB", "BA", "ABC", "BCA", "CAB"]);
        assert_eq!(found.sd, None);
        assert!((found.mean - f64::midpoint(0.5, 1.0 / 3.0)).abs() < 1e-12);
    }

    #[test]
    fn answers_to_other_questions_are_refused() {
        let (two, three) = (set(&[&["w", "x"]]), set(&[&["w", "x", "y"]]));
        let others = three.permuted(Orders::Cyclic, &Cancel::default()).unwrap();
        assert!(
            answers(&two, Orders::Cyclic, &first_letter(&two), &first_letter(&others), &Cancel::default()).is_err()
        );
        let (a, b) = (first_letter(&three), first_letter(&two.permuted(Orders::Cyclic, &Cancel::default()).unwrap()));
        assert!(answers(&two, Orders::Cyclic, &a, &b, &Cancel::default()).is_err());
        assert!(effects(&[]).is_err());
    }
}
