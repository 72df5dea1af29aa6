//! Requests: prompts as token ids, by lm-eval's rules (`TemplateLM._encode_pair` and `loglikelihood`).
//!
//! White space at the end of a context moves to the continuation; a continuation's tokens are those of context and continuation
//! together, less as many as the context has by itself; an empty context becomes the prefix token.

use std::collections::HashMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::runtime::parallel::{self, Cancel};
use crate::text::prompt::Prompts;
use crate::text::space::is_python_space;
use crate::tokens::boundary::Boundaries;
use crate::tokens::tokenizer::{Engine, Tokenizer};

/// The reference, tried twice, is at odds with itself.
pub(crate) const DISAGREES: &str =
    "it does not give a text the same tokens twice, or puts other special tokens around some texts than around others";

/// How many of the run's own prompts are tokenized both ways before the fast way is trusted.
const PROBES: usize = 16;

/// Ends of contexts up to this many bytes are remembered: `\nAnswer:` stands under every question.
const MEMO_BYTES: usize = 64;

/// Entries of such a memory before it starts afresh.
const MEMO_ENTRIES: usize = 4096;

/// Questions that are tokenized in one go.
const PORTION: usize = 256;

/// Opens what is hashed, so that a later encoding cannot be mistaken for this one.
const HASH_HEADER: &[u8] = b"wmdp-fast requests 1\n";

/// How the tokens were made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encoding {
    /// The crate that made them.
    pub engine: Engine,
    /// Why it was not fastokens, if so.
    pub why_not_fast: Option<String>,
    /// Why contexts were tokenized whole, without sharing their common beginning, if so.
    pub why_no_cuts: Option<String>,
}

/// The tokenized prompts of a run: the questions of all its tasks, one task after another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// The tokens that all contexts of a task begin with; one entry a task, then an empty one.
    prefixes: Vec<Vec<u32>>,
    /// For each question, the prefix its context begins with: an index into `prefixes`.
    context_prefixes: Vec<u32>,
    /// For each question, where its own context tokens begin in `context_tokens`; one more entry at the end.
    context_offsets: Vec<usize>,
    /// Context tokens after the prefix.
    context_tokens: Vec<u32>,
    /// For each question, its first choice among all the run's choices; one more entry at the end.
    choice_offsets: Vec<usize>,
    /// For each choice, where its tokens begin in `continuation_tokens`; one more entry at the end.
    continuation_offsets: Vec<usize>,
    /// Tokens of the choices' continuations.
    continuation_tokens: Vec<u32>,
    /// Maximum sequence length of the model; longer requests lose tokens on the left.
    max_length: usize,
    /// How the tokens were made; None if they were given.
    encoding: Option<Encoding>,
    /// Choices whose first characters became one token with the end of their context. As in lm-eval, what is scored then is the rest
    /// of the choice.
    #[serde(default)]
    joined: usize,
    /// File and row of the first question with such a choice.
    #[serde(default)]
    first_joined: Option<String>,
}

/// How much of the prompts does not fit into the model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Truncation {
    /// Questions of which a request loses tokens.
    pub questions: usize,
    /// Requests, a choice each, that lose tokens.
    pub choices: usize,
    /// The most tokens that one loses.
    pub most: usize,
    /// The question that loses them, over the whole run.
    pub worst: Option<usize>,
}

impl Requests {
    /// Tokenizes the prompts of all tasks of a run.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] naming file and row if a context or continuation has no tokens or a continuation is longer than
    /// `max_length`; [`Error::Cancelled`].
    pub fn encode(tokenizer: &Tokenizer, tasks: &[&Prompts], max_length: usize, cancel: &Cancel) -> Result<Self> {
        if max_length == 0 {
            return Err(Error::InvalidArgument("max_length must be at least 1".to_owned()));
        }
        parallel::install(|| {
            let no_cuts = Boundaries::none("");
            let (encoder, encoding) = choose_engine(tokenizer, tasks, &no_cuts)?;
            encode_with(&encoder, tasks, max_length, encoding, cancel)
        })
    }

    /// Requests that another program has tokenized: for each question its context and its choices' continuations.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the question if a context or continuation is empty, a continuation is longer than
    /// `max_length`, or there are not as many lists of continuations as contexts.
    pub fn from_tokens(contexts: &[Vec<u32>], continuations: &[Vec<Vec<u32>>], max_length: usize) -> Result<Self> {
        if contexts.len() != continuations.len() {
            return Err(Error::InvalidArgument(format!(
                "there are {} contexts and continuations of {} questions",
                contexts.len(),
                continuations.len()
            )));
        }
        let mut requests = Self {
            prefixes: vec![Vec::new()],
            context_prefixes: vec![0; contexts.len()],
            context_offsets: vec![0],
            context_tokens: contexts.concat(),
            choice_offsets: vec![0],
            continuation_offsets: vec![0],
            continuation_tokens: continuations.iter().flatten().flatten().copied().collect(),
            max_length,
            encoding: None,
            joined: 0,
            first_joined: None,
        };
        for (question, (context, continuations)) in contexts.iter().zip(continuations).enumerate() {
            let refuse = |problem: String| Err(Error::InvalidArgument(format!("question {}: {problem}", question + 1)));
            if context.is_empty() {
                return refuse("its context has no tokens".to_owned());
            }
            requests.context_offsets.push(requests.context_offsets[question] + context.len());
            for (choice, tokens) in continuations.iter().enumerate() {
                if tokens.is_empty() || tokens.len() > max_length {
                    let length = tokens.len();
                    return refuse(format!("choice {} has {length} tokens, not 1 to {max_length}", choice + 1));
                }
                let first = requests.continuation_offsets[requests.continuation_offsets.len() - 1];
                requests.continuation_offsets.push(first + tokens.len());
            }
            requests.choice_offsets.push(requests.continuation_offsets.len() - 1);
        }
        Ok(requests)
    }

    /// Some of the questions as a run of their own, with their choices; numbered from 0 in the order given.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such question.
    pub fn part(&self, questions: &[usize]) -> Result<Self> {
        let mut part = Self {
            prefixes: self.prefixes.clone(),
            context_prefixes: Vec::with_capacity(questions.len()),
            context_offsets: vec![0],
            context_tokens: Vec::new(),
            choice_offsets: vec![0],
            continuation_offsets: vec![0],
            continuation_tokens: Vec::new(),
            max_length: self.max_length,
            encoding: self.encoding.clone(),
            // Who made the tokens has said that of the whole run.
            joined: 0,
            first_joined: None,
        };
        for &question in questions {
            if question >= self.num_questions() {
                return Err(Error::InvalidArgument(format!("there is no question {question}")));
            }
            let (_, own) = self.context(question);
            part.context_prefixes.push(self.context_prefixes[question]);
            part.context_tokens.extend_from_slice(own);
            part.context_offsets.push(part.context_tokens.len());
            for choice in self.choices(question) {
                part.continuation_tokens.extend_from_slice(self.continuation(choice));
                part.continuation_offsets.push(part.continuation_tokens.len());
            }
            part.choice_offsets.push(part.continuation_offsets.len() - 1);
        }
        Ok(part)
    }

    /// The requests as bytes that [`Requests::from_bytes`] reads, for pickling.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|error| Error::Internal(format!("requests cannot be written: {error}")))
    }

    /// The requests that were written by [`Requests::to_bytes`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if they were not.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let invalid = |problem| Error::InvalidArgument(format!("these bytes are no pickled requests: {problem}"));
        let requests: Self = serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
        if requests.fits_together() { Ok(requests) } else { Err(invalid("its parts do not fit together".to_owned())) }
    }

    fn fits_together(&self) -> bool {
        let cuts = |offsets: &[usize], length: usize| {
            offsets.first() == Some(&0) && offsets.last() == Some(&length) && offsets.is_sorted()
        };
        self.context_offsets.len() == self.context_prefixes.len() + 1
            && self.choice_offsets.len() == self.context_prefixes.len() + 1
            && cuts(&self.context_offsets, self.context_tokens.len())
            && cuts(&self.continuation_offsets, self.continuation_tokens.len())
            && cuts(&self.choice_offsets, self.continuation_offsets.len() - 1)
            && self.context_prefixes.iter().all(|&prefix| (prefix as usize) < self.prefixes.len())
    }

    /// SHA-256 of what is asked, as 64 hexadecimal digits: the same for the same tokens, however they were made.
    ///
    /// Hashed are the bytes `wmdp-fast requests 1\n` and `max_length`, then for each question the context's tokens, the number of
    /// choices, and each continuation's tokens. Tokens are their number, then 32 bits each; all other numbers are 64 bits,
    /// little-endian.
    #[must_use]
    pub fn content_hash(&self) -> String {
        self.content_hash_until(&Cancel::default()).unwrap_or_default()
    }

    /// The same, unless asked to stop.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn content_hash_until(&self, cancel: &Cancel) -> Result<String> {
        let bytes = |tokens: &[u32]| tokens.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<u8>>();
        // A prefix is turned into bytes once, not for each of its questions.
        let prefixes: Vec<Vec<u8>> = self.prefixes.iter().map(|prefix| bytes(prefix)).collect();
        let mut hasher = Sha256::new_with_prefix(HASH_HEADER);
        hasher.update((self.max_length as u64).to_le_bytes());
        for question in 0..self.num_questions() {
            cancel.check()?;
            let (prefix, own) = self.context(question);
            hasher.update(((prefix.len() + own.len()) as u64).to_le_bytes());
            hasher.update(&prefixes[self.context_prefixes[question] as usize]);
            hasher.update(bytes(own));
            let choices = self.choices(question);
            hasher.update((choices.len() as u64).to_le_bytes());
            for choice in choices {
                let tokens = self.continuation(choice);
                hasher.update((tokens.len() as u64).to_le_bytes());
                hasher.update(bytes(tokens));
            }
        }
        Ok(format!("{:x}", hasher.finalize()))
    }

    /// How much of the requests is cut off on the left because the model cannot read it (lm-eval warns of each).
    #[must_use]
    pub fn truncation(&self) -> Truncation {
        let mut cut = Truncation::default();
        for question in 0..self.num_questions() {
            let (prefix, own) = self.context(question);
            let context = prefix.len() + own.len();
            // The last token of a continuation is scored, not read.
            let lost = |choice: usize| {
                (context + self.continuation(choice).len()).saturating_sub(self.max_length.saturating_add(1))
            };
            let choices = self.choices(question).map(lost).filter(|&lost| lost > 0);
            let (count, most) = choices.fold((0, 0), |(count, most), lost| (count + 1, lost.max(most)));
            cut.choices += count;
            cut.questions += usize::from(count > 0);
            if most > cut.most {
                (cut.most, cut.worst) = (most, Some(question));
            }
        }
        cut
    }

    /// The first question with a token that is not below `num_tokens`, and that token.
    #[must_use]
    pub fn token_beyond(&self, num_tokens: u32) -> Option<(usize, u32)> {
        let beyond = |tokens: &[u32]| tokens.iter().copied().find(|&token| token >= num_tokens);
        let in_prefix: Vec<Option<u32>> = self.prefixes.iter().map(|prefix| beyond(prefix)).collect();
        (0..self.num_questions()).find_map(|question| {
            in_prefix[self.context_prefixes[question] as usize]
                .or_else(|| beyond(self.context(question).1))
                .or_else(|| self.choices(question).find_map(|choice| beyond(self.continuation(choice))))
                .map(|token| (question, token))
        })
    }

    /// Number of questions.
    #[must_use]
    pub fn num_questions(&self) -> usize {
        self.context_prefixes.len()
    }

    /// Number of choices of all questions together.
    #[must_use]
    pub fn num_choices(&self) -> usize {
        self.continuation_offsets.len() - 1
    }

    /// A question's context as its shared and its own tokens.
    #[must_use]
    pub fn context(&self, question: usize) -> (&[u32], &[u32]) {
        let own = &self.context_tokens[self.context_offsets[question]..self.context_offsets[question + 1]];
        (&self.prefixes[self.context_prefixes[question] as usize], own)
    }

    /// The tokens of a continuation; `choice` counts over the whole run.
    #[must_use]
    pub fn continuation(&self, choice: usize) -> &[u32] {
        &self.continuation_tokens[self.continuation_offsets[choice]..self.continuation_offsets[choice + 1]]
    }

    /// A token of a continuation, counted over the continuations of the whole run.
    pub(crate) fn continuation_token(&self, index: usize) -> u32 {
        self.continuation_tokens[index]
    }

    /// For each question, its first choice among all the run's choices; one more entry at the end.
    #[must_use]
    pub fn choice_offsets(&self) -> &[usize] {
        &self.choice_offsets
    }

    /// For each choice, where its tokens begin among those of all continuations; one more entry at the end.
    #[must_use]
    pub fn continuation_offsets(&self) -> &[usize] {
        &self.continuation_offsets
    }

    /// Maximum sequence length of the model; longer requests lose tokens on the left.
    #[must_use]
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// How the tokens were made; None if they were given.
    #[must_use]
    pub fn encoding(&self) -> Option<&Encoding> {
        self.encoding.as_ref()
    }

    /// Choices whose first characters became one token with the end of their context. As in lm-eval, what is scored then is the rest
    /// of the choice.
    #[must_use]
    pub fn joined(&self) -> usize {
        self.joined
    }

    /// File and row of the first question with such a choice.
    #[must_use]
    pub fn first_joined(&self) -> Option<&str> {
        self.first_joined.as_deref()
    }

    /// A question's choices, as indices over the whole run.
    #[must_use]
    pub fn choices(&self, question: usize) -> std::ops::Range<usize> {
        self.choice_offsets[question]..self.choice_offsets[question + 1]
    }
}

/// One way of tokenizing: an engine and the cuts it may make.
struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    engine: Engine,
    boundaries: &'a Boundaries,
    /// How many tokens each anchor has by itself.
    anchor_lengths: [usize; 128],
}

/// A text's last part together with its anchor, and its tokens without the anchor's.
type Memo = HashMap<String, Vec<u32>>;

/// The beginning that the contexts of a task share.
struct Head<'a> {
    /// The part of the shared text that may be tokenized by itself; empty, or it ends in an anchor.
    text: &'a str,
    /// Its tokens, with the special tokens that lead every context of the task.
    tokens: Vec<u32>,
    /// Whether all contexts of the task get the same special tokens, and if so whether they bring their own.
    begins_with_prefix: Option<bool>,
}

struct EncodedQuestion {
    /// Whether the context comes after the task's head; else it is complete.
    after_head: bool,
    context: Vec<u32>,
    continuations: Vec<Vec<u32>>,
    /// For each choice, whether it begins inside a token of its context.
    joined: Vec<bool>,
}

impl<'a> Encoder<'a> {
    fn new(tokenizer: &'a Tokenizer, engine: Engine, boundaries: &'a Boundaries) -> Result<Self> {
        let mut anchor_lengths = [0; 128];
        if boundaries.why_none().is_some() {
            return Ok(Self { tokenizer, engine, boundaries, anchor_lengths });
        }
        for c in (0..128_u8).filter(u8::is_ascii_alphanumeric) {
            let anchor = char::from(c).to_string();
            anchor_lengths[usize::from(c)] = tokenizer.encode_bare(engine, &anchor)?.len();
        }
        Ok(Self { tokenizer, engine, boundaries, anchor_lengths })
    }

    fn head<'t>(&self, prefix: &'t str) -> Result<Head<'t>> {
        let prefix_text = self.tokenizer.prefix_text();
        if prefix.len() < prefix_text.len() {
            return Ok(Head { text: "", tokens: Vec::new(), begins_with_prefix: None });
        }
        let text = &prefix[..self.boundaries.last_cut(prefix).unwrap_or(0)];
        let begins_with_prefix = prefix.starts_with(prefix_text);
        let (lead, _) = self.tokenizer.special_tokens(begins_with_prefix);
        let tokens = [lead, &self.tokenizer.encode_bare(self.engine, text)?].concat();
        Ok(Head { text, tokens, begins_with_prefix: Some(begins_with_prefix) })
    }

    /// Tokens of `text` where it follows `before`, which is empty or ends in an anchor.
    fn encode_after(&self, before: &str, text: &str) -> Result<Vec<u32>> {
        let Some(&anchor) = before.as_bytes().last() else {
            return self.tokenizer.encode_bare(self.engine, text);
        };
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let mut anchored = String::with_capacity(text.len() + 1);
        anchored.push(char::from(anchor));
        anchored.push_str(text);
        let mut tokens = self.tokenizer.encode_bare(self.engine, &anchored)?;
        tokens.drain(..self.anchor_lengths[usize::from(anchor)].min(tokens.len()));
        Ok(tokens)
    }

    /// The same for a text that many questions have at this place.
    fn encode_common(&self, before: &str, text: &str, memo: &mut Memo) -> Result<Vec<u32>> {
        if text.len() > MEMO_BYTES || before.is_empty() {
            return self.encode_after(before, text);
        }
        let key = [&before[before.len() - 1..], text].concat();
        if let Some(tokens) = memo.get(&key) {
            return Ok(tokens.clone());
        }
        let tokens = self.encode_after(before, text)?;
        if memo.len() >= MEMO_ENTRIES {
            memo.clear();
        }
        memo.insert(key, tokens.clone());
        Ok(tokens)
    }

    fn encode_question(
        &self,
        prompts: &Prompts,
        question: usize,
        head: &Head<'_>,
        memo: &mut Memo,
    ) -> Result<EncodedQuestion> {
        let body = prompts.bodies[question].as_str();
        let untrimmed = [&prompts.prefix[head.text.len()..], body].concat();
        let (begins_with_prefix, after_head) = match head.begins_with_prefix {
            Some(begins) => (begins, true),
            None if untrimmed.is_empty() => return self.encode_without_context(prompts, question),
            None if untrimmed.len() < self.tokenizer.prefix_text().len() => {
                return self.encode_undecided(prompts, question);
            }
            None => (self.tokenizer.begins_with_prefix(&untrimmed), false),
        };
        let (lead, trail) = self.tokenizer.special_tokens(begins_with_prefix);

        let own = untrimmed.trim_end_matches(is_python_space);
        let spaces = &untrimmed[own.len()..];
        let cut = self.boundaries.last_cut(own).unwrap_or(0);
        let (middle, end) = own.split_at(cut);
        let before_end = if cut == 0 { head.text } else { middle };

        let mut context = if after_head { Vec::new() } else { lead.to_vec() };
        context.extend(self.encode_after(head.text, middle)?);
        let end_tokens = self.encode_common(before_end, end, memo)?;
        context.extend_from_slice(&end_tokens);
        context.extend_from_slice(trail);
        let mut text = String::new();
        let mut joined = Vec::with_capacity(prompts.choices[question].len());
        let continuations = prompts.choices[question]
            .iter()
            .map(|choice| {
                text.clear();
                for part in [end, spaces, &prompts.delimiter, choice] {
                    text.push_str(part);
                }
                let mut whole = self.encode_common(before_end, &text, memo)?;
                joined.push(!whole.starts_with(&end_tokens));
                whole.extend_from_slice(trail);
                Ok(whole.split_off(whole.len().min(end_tokens.len() + trail.len())))
            })
            .collect::<Result<_>>()?;
        Ok(EncodedQuestion { after_head, context, continuations, joined })
    }

    /// An empty context: the prefix token stands for it, unless the continuation begins with that token itself.
    fn encode_without_context(&self, prompts: &Prompts, question: usize) -> Result<EncodedQuestion> {
        let prefix = self.tokenizer.prefix_token_id();
        let continuations = (0..prompts.choices[question].len())
            .map(|choice| {
                let mut tokens = self.tokenizer.encode_bare(self.engine, &prompts.continuation(question, choice))?;
                if tokens.first() == Some(&prefix) {
                    tokens.remove(0);
                }
                Ok(tokens)
            })
            .collect::<Result<_>>()?;
        let joined = vec![false; prompts.choices[question].len()];
        Ok(EncodedQuestion { after_head: false, context: vec![prefix], continuations, joined })
    }

    /// A context too short to tell whether it begins with the prefix token's text: no cuts, each text decides for itself.
    fn encode_undecided(&self, prompts: &Prompts, question: usize) -> Result<EncodedQuestion> {
        let untrimmed = prompts.context(question);
        let own = untrimmed.trim_end_matches(is_python_space);
        let encode = |text: &str| -> Result<Vec<u32>> {
            let (lead, trail) = self.tokenizer.special_tokens(self.tokenizer.begins_with_prefix(text));
            Ok([lead, &self.tokenizer.encode_bare(self.engine, text)?, trail].concat())
        };
        let context = encode(own)?;
        let mut joined = Vec::with_capacity(prompts.choices[question].len());
        let continuations = (0..prompts.choices[question].len())
            .map(|choice| {
                let mut whole = encode(&[&untrimmed, prompts.continuation(question, choice).as_str()].concat())?;
                joined.push(!whole.starts_with(&context));
                Ok(whole.split_off(whole.len().min(context.len())))
            })
            .collect::<Result<_>>()?;
        Ok(EncodedQuestion { after_head: false, context, continuations, joined })
    }
}

/// The fastest way of tokenizing that gives the reference's tokens on probes drawn from the prompts themselves.
fn choose_engine<'a>(
    tokenizer: &'a Tokenizer,
    tasks: &[&Prompts],
    no_cuts: &'a Boundaries,
) -> Result<(Encoder<'a>, Encoding)> {
    let probes = probes(tasks);
    let mut why_not_fast = tokenizer.why_not_fast().map(str::to_owned);
    let mut why_no_cuts = tokenizer.boundaries().why_none().map(str::to_owned);
    for engine in [Engine::Fastokens, Engine::Tokenizers] {
        if engine == Engine::Fastokens && why_not_fast.is_some() {
            continue;
        }
        for boundaries in [tokenizer.boundaries(), no_cuts] {
            // A way that fails differs: the reference, of whole texts, is what may fail.
            let is_reference = engine == Engine::Tokenizers && boundaries.why_none().is_some();
            let differs = match Encoder::new(tokenizer, engine, boundaries) {
                Ok(encoder) => match first_difference(&encoder, tasks, &probes) {
                    Ok(None) => return Ok((encoder, Encoding { engine, why_not_fast, why_no_cuts })),
                    Ok(Some(differs)) => differs,
                    Err(error) if is_reference => return Err(error),
                    Err(Error::Tokenizer(_)) => "a prompt".to_owned(),
                    Err(error) => return Err(error),
                },
                Err(_) => "a single character".to_owned(),
            };
            if boundaries.why_none().is_none() {
                why_no_cuts = Some(format!("tokenizing {differs} in parts gave other tokens than tokenizing it whole"));
            } else if engine == Engine::Fastokens {
                why_not_fast = Some(format!("its tokens differ from those of tokenizers on {differs}"));
                why_no_cuts = tokenizer.boundaries().why_none().map(str::to_owned);
            }
        }
    }
    Err(Error::Tokenizer(DISAGREES.to_owned()))
}

/// Questions to check on: spread evenly over the run, and those with the most unusual text (the least ASCII).
fn probes(tasks: &[&Prompts]) -> Vec<(usize, usize)> {
    let all: Vec<(usize, usize)> = tasks
        .iter()
        .enumerate()
        .flat_map(|(task, prompts)| (0..prompts.len()).map(move |question| (task, question)))
        .collect();
    let step = all.len().div_ceil(PROBES / 2).max(1);
    let mut probes: Vec<_> = all.iter().copied().step_by(step).collect();
    let mut unusual: Vec<_> = all
        .iter()
        .filter_map(|&(task, question)| {
            let foreign = tasks[task].bodies[question].bytes().filter(|byte| !byte.is_ascii()).count();
            (foreign > 0).then_some((std::cmp::Reverse(foreign), task, question))
        })
        .collect();
    unusual.sort_unstable();
    probes.extend(unusual.into_iter().take(PROBES / 2).map(|(_, task, question)| (task, question)));
    probes
}

/// The first probe on which an encoder's tokens are not the reference's.
fn first_difference(encoder: &Encoder<'_>, tasks: &[&Prompts], probes: &[(usize, usize)]) -> Result<Option<String>> {
    let differences: Vec<Option<String>> = probes
        .par_iter()
        .map(|&(task, question)| {
            let prompts = tasks[task];
            let head = encoder.head(&prompts.prefix)?;
            let asked = encoder.encode_question(prompts, question, &head, &mut Memo::new())?;
            let context = prompts.context(question);
            if context.is_empty() {
                return Ok(None);
            }
            let ours = [if asked.after_head { head.tokens.as_slice() } else { &[] }, &asked.context].concat();
            let theirs = encoder.tokenizer.encode(context.trim_end_matches(is_python_space))?;
            let choice = question % prompts.choices[question].len().max(1);
            let whole =
                encoder.tokenizer.encode(&[&context, prompts.continuation(question, choice).as_str()].concat())?;
            let same = ours == theirs && asked.continuations[choice] == whole[whole.len().min(theirs.len())..];
            Ok((!same).then(|| format!("{}, row {}", prompts.source, question + 1)))
        })
        .collect::<Result<_>>()?;
    Ok(differences.into_iter().flatten().next())
}

fn encode_with(
    encoder: &Encoder<'_>,
    tasks: &[&Prompts],
    max_length: usize,
    encoding: Encoding,
    cancel: &Cancel,
) -> Result<Requests> {
    let mut requests = Requests {
        prefixes: Vec::with_capacity(tasks.len() + 1),
        context_prefixes: Vec::new(),
        context_offsets: vec![0],
        context_tokens: Vec::new(),
        choice_offsets: vec![0],
        continuation_offsets: vec![0],
        continuation_tokens: Vec::new(),
        max_length,
        encoding: Some(encoding),
        joined: 0,
        first_joined: None,
    };
    // All tasks at once, so that 57 small ones keep every thread busy to the end.
    let heads: Vec<Head<'_>> = tasks.par_iter().map(|prompts| encoder.head(&prompts.prefix)).collect::<Result<_>>()?;
    let questions: Vec<(usize, usize)> = tasks
        .iter()
        .enumerate()
        .flat_map(|(task, prompts)| (0..prompts.len()).map(move |question| (task, question)))
        .collect();
    let portions: Vec<Portion> = questions
        .par_chunks(PORTION)
        .map_init(Memo::new, |memo, questions| {
            let mut portion = Portion::default();
            for &(task, question) in questions {
                cancel.check()?;
                let asked = encoder.encode_question(tasks[task], question, &heads[task], memo)?;
                check(&asked, &heads[task], tasks[task], question, max_length).map_err(|problem| {
                    Error::Tokenizer(format!("{}, row {}: {problem}", tasks[task].source, question + 1))
                })?;
                portion.push(&asked);
            }
            Ok(portion)
        })
        .collect::<Result<_>>()?;

    requests.prefixes.extend(heads.into_iter().map(|head| head.tokens));
    requests.prefixes.push(Vec::new());
    for (questions, portion) in questions.chunks(PORTION).zip(portions) {
        cancel.check()?;
        requests.append(tasks, questions, &portion);
    }
    Ok(requests)
}

/// Some questions' tokens one after another: a list for each of millions of choices takes seconds to drop.
#[derive(Default)]
struct Portion {
    contexts: Vec<u32>,
    continuations: Vec<u32>,
    /// For each question whether its context comes after the task's head, that context's tokens, the number of its choices, and how
    /// many of those begin inside a token of the context.
    questions: Vec<(bool, usize, usize, usize)>,
    /// For each choice its tokens.
    continuation_lengths: Vec<usize>,
}

impl Portion {
    fn push(&mut self, asked: &EncodedQuestion) {
        let joined = asked.joined.iter().filter(|&&joined| joined).count();
        self.questions.push((asked.after_head, asked.context.len(), asked.continuations.len(), joined));
        self.contexts.extend_from_slice(&asked.context);
        for continuation in &asked.continuations {
            self.continuations.extend_from_slice(continuation);
            self.continuation_lengths.push(continuation.len());
        }
    }
}

impl Requests {
    /// Appends a portion that holds these questions, each a task and a row in it.
    fn append(&mut self, tasks: &[&Prompts], questions: &[(usize, usize)], portion: &Portion) {
        let no_prefix = self.prefixes.len() as u32 - 1;
        let mut end = self.context_tokens.len();
        let mut choices = self.continuation_offsets.len() - 1;
        for (&(task, row), &(after_head, length, num_choices, joined)) in questions.iter().zip(&portion.questions) {
            if joined > 0 && self.joined == 0 {
                self.first_joined = Some(format!("{}, row {}", tasks[task].source, row + 1));
            }
            self.joined += joined;
            self.context_prefixes.push(if after_head { task as u32 } else { no_prefix });
            end += length;
            self.context_offsets.push(end);
            choices += num_choices;
            self.choice_offsets.push(choices);
        }
        self.context_tokens.extend_from_slice(&portion.contexts);
        let mut end = self.continuation_tokens.len();
        for length in &portion.continuation_lengths {
            end += length;
            self.continuation_offsets.push(end);
        }
        self.continuation_tokens.extend_from_slice(&portion.continuations);
    }
}

/// lm-eval's assertions on a request.
fn check(
    encoded: &EncodedQuestion,
    head: &Head<'_>,
    prompts: &Prompts,
    question: usize,
    max_length: usize,
) -> Result<(), String> {
    if encoded.context.is_empty() && (!encoded.after_head || head.tokens.is_empty()) {
        return Err("its context has no tokens (only white space?)".to_owned());
    }
    for (choice, tokens) in encoded.continuations.iter().enumerate() {
        if tokens.is_empty() {
            return Err(no_tokens(encoded, prompts, question, choice));
        }
        if tokens.len() > max_length {
            return Err(format!(
                "choice {} has {} tokens, more than the model's {max_length}",
                choice + 1,
                tokens.len()
            ));
        }
    }
    Ok(())
}

/// Why a choice has no tokens. lm-eval stops there too, at an assertion.
fn no_tokens(encoded: &EncodedQuestion, prompts: &Prompts, question: usize, choice: usize) -> String {
    const SHOWN: usize = 20;
    let text = prompts.continuation(question, choice);
    let number = choice + 1;
    if encoded.joined[choice] {
        let context = prompts.context(question);
        let start = context.char_indices().rev().nth(SHOWN - 1).map_or(0, |(start, _)| start);
        return format!(
            "choice {number} has no tokens of its own: the tokenizer makes one token of its text {text:?} and the prompt's end {:?}, so \
             that nothing is left to score; end the prompt in another way, or put another delimiter between them",
            &context[start..]
        );
    }
    if text.trim().is_empty() {
        return format!("choice {number} has no tokens, since it is empty; give every choice a text");
    }
    format!(
        "choice {number} has no tokens: the tokenizer drops its text {text:?}; write it in characters that it knows"
    )
}
