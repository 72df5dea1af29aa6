//! Where a text may be cut so that its parts can be tokenized on their own.
//!
//! A few-shot prefix is the same for every question of a subject, so its tokens should be computed once. That is right only if
//! `encode(head + tail) == encode(head) + encode(tail)`, which byte-pair encoders do not promise in general. It is proven here, from
//! the tokenizer's own description, for cuts between an ASCII letter or digit and a line feed or space after it:
//!
//! 1. *Pieces.* Where a known pre-tokenizer splits the text, every pattern in `KNOWN_PATTERNS` ends its run of letters or digits at
//!    white space, begins the next piece there, looks at most one character ahead and never behind. So a piece ends at the cut, and what
//!    is on one side of it does not depend on the other. Merges never leave a piece.
//! 2. *Merges.* Where nothing splits the text (SentencePiece-style models), each merge makes a token of the vocabulary. If no token holds the
//!    two characters at the cut side by side, no merge ever crosses it, and merges on the two sides do not affect each other.
//!
//! Whatever is not covered (another normalizer, pre-tokenizer or model) gets no cuts and is tokenized whole: slower, never wrong.
//! The tail is always tokenized behind its anchor, the one character before the cut, because some tokenizers treat the beginning of a
//! text in a way of their own (`▁` put in front); the anchor's tokens are dropped afterwards.

use serde_json::Value;

/// Split patterns for which rule 1 holds, as they stand in published `tokenizer.json` files.
const KNOWN_PATTERNS: [&str; 8] = [
    // GPT-2 (also what `ByteLevel` with `use_regex` applies)
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    // GPT-4 (cl100k) and Llama 3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    // Qwen 2, 2.5 and 3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    // OLMo 2, Phi 4
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    // GPT-4o (o200k), gpt-oss
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    // Mistral's Tekken
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    // digits by themselves, put before another pattern by several models
    r"\p{N}{1,3}",
];

/// The characters a tail can begin with: line feed and space.
const TAIL_STARTS: [u8; 2] = [b'\n', b' '];

/// Which cuts are proven safe for one tokenizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boundaries {
    /// `safe[k][c]`: a cut between the ASCII character `c` and `TAIL_STARTS[k]`.
    safe: [[bool; 128]; 2],
    /// Why there are no safe cuts at all.
    why_none: Option<String>,
}

impl Boundaries {
    /// Reads the proof off a `tokenizer.json`.
    #[must_use]
    pub fn of(tokenizer: &Value) -> Self {
        match prove(tokenizer) {
            Ok(safe) => Self { safe, why_none: None },
            Err(reason) => Self { safe: [[false; 128]; 2], why_none: Some(reason) },
        }
    }

    /// No cuts, for the given reason.
    #[must_use]
    pub fn none(reason: &str) -> Self {
        Self { safe: [[false; 128]; 2], why_none: Some(reason.to_owned()) }
    }

    /// Why this tokenizer has no safe cuts, if so.
    #[must_use]
    pub fn why_none(&self) -> Option<&str> {
        self.why_none.as_deref()
    }

    /// The last safe cut of a text: the byte offset at which its tail begins. The byte before it is the anchor, one ASCII character.
    #[must_use]
    pub fn last_cut(&self, text: &str) -> Option<usize> {
        let bytes = text.as_bytes();
        (1..bytes.len()).rev().find(|&at| self.is_safe(bytes[at - 1], bytes[at]))
    }

    /// The first safe cut of a text at byte `from` or behind it. What is before it has the tokens it has in the whole.
    #[must_use]
    pub fn first_cut_from(&self, text: &str, from: usize) -> Option<usize> {
        let bytes = text.as_bytes();
        (from.max(1)..bytes.len()).find(|&at| self.is_safe(bytes[at - 1], bytes[at]))
    }

    fn is_safe(&self, left: u8, right: u8) -> bool {
        left.is_ascii_alphanumeric()
            && TAIL_STARTS
                .iter()
                .position(|&start| start == right)
                .is_some_and(|kind| self.safe[kind][usize::from(left)])
    }
}

fn prove(tokenizer: &Value) -> Result<[[bool; 128]; 2], String> {
    let model = &tokenizer["model"];
    let kind = model["type"].as_str().unwrap_or("BPE");
    if kind != "BPE" {
        return Err(format!("the model is {kind}, not BPE"));
    }
    if model["dropout"].as_f64().is_some_and(|rate| rate > 0.0) {
        return Err("the model drops merges at random".to_owned());
    }
    for affix in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if model[affix].as_str().is_some_and(|text| !text.is_empty()) {
            return Err(format!("the model has a {affix}"));
        }
    }
    let vocabulary = model["vocab"].as_object().ok_or("the model has no vocabulary")?;
    check_normalizer(&tokenizer["normalizer"])?;
    let splits = splits_at_white_space(&tokenizer["pre_tokenizer"])?;

    let mut safe = [[false; 128]; 2];
    for kind in &mut safe {
        for c in 0..128_u8 {
            kind[usize::from(c)] = c.is_ascii_alphanumeric();
        }
    }
    if !splits {
        for token in vocabulary.keys() {
            forbid_inside(token, &mut safe);
        }
        // A piece that is a token by itself skips its merges, so a part may come out otherwise than it does within the whole.
        if model["ignore_merges"].as_bool() == Some(true) {
            return Err(
                "the model takes whole pieces from its vocabulary, and nothing splits the text into any".to_owned()
            );
        }
        // An unknown character left of the cut could be fused with an unknown one right of it.
        if model["fuse_unk"].as_bool() == Some(true) {
            for kind in &mut safe {
                for c in 0..128_u8 {
                    kind[usize::from(c)] &= vocabulary.contains_key(char::from(c).to_string().as_str());
                }
            }
        }
    }
    for token in tokenizer["added_tokens"].as_array().into_iter().flatten() {
        let content = token["content"].as_str().ok_or("an added token has no content")?;
        forbid_inside(content, &mut safe);
        // Such a token swallows the white space after it, so it must not end at a cut.
        if token["rstrip"].as_bool() == Some(true)
            && let Some(&last) = content.as_bytes().last()
        {
            for kind in &mut safe {
                kind[usize::from(last & 0x7f)] = false;
            }
        }
    }
    Ok(safe)
}

/// Marks as unsafe every cut that lies inside `token`, in which `▁` or `Ġ` stands for a space and `Ċ` for a line feed.
fn forbid_inside(token: &str, safe: &mut [[bool; 128]; 2]) {
    let mut previous = '\0';
    for c in token.chars() {
        let tail_start = match c {
            '▁' | 'Ġ' => b' ',
            'Ċ' => b'\n',
            _ => u8::try_from(c).unwrap_or(0),
        };
        if previous.is_ascii()
            && let Some(kind) = TAIL_STARTS.iter().position(|&start| start == tail_start)
        {
            safe[kind][previous as usize] = false;
        }
        previous = c;
    }
}

/// Normalizers that work on each character, or on a letter and the marks after it, and leave ASCII as it is but for `▁`.
fn check_normalizer(normalizer: &Value) -> Result<(), String> {
    match normalizer["type"].as_str() {
        None if normalizer.is_null() => Ok(()),
        Some("NFC" | "NFKC" | "Prepend") => Ok(()),
        Some("Replace") if normalizer["pattern"]["String"] == " " && normalizer["content"] == "▁" => Ok(()),
        Some("Sequence") => normalizer["normalizers"].as_array().into_iter().flatten().try_for_each(check_normalizer),
        other => Err(format!("no proof for the normalizer {}", other.unwrap_or("without a type"))),
    }
}

/// Whether the pre-tokenizer always splits at a cut (rule 1). False: it may not, so rule 2 has to hold.
fn splits_at_white_space(pre_tokenizer: &Value) -> Result<bool, String> {
    match pre_tokenizer["type"].as_str() {
        None if pre_tokenizer.is_null() => Ok(false),
        Some("ByteLevel") => Ok(pre_tokenizer["use_regex"].as_bool().unwrap_or(true)),
        Some("Digits" | "Metaspace") => Ok(false),
        Some("Split") => {
            let pattern = &pre_tokenizer["pattern"];
            if pre_tokenizer["invert"].as_bool() == Some(true) {
                return Err("no proof for an inverted split".to_owned());
            }
            match (pattern["Regex"].as_str(), pattern["String"].as_str()) {
                (Some(regex), _) if KNOWN_PATTERNS.contains(&regex) => {
                    // The digits' pattern alone says nothing about letters.
                    Ok(regex != KNOWN_PATTERNS[KNOWN_PATTERNS.len() - 1] && pre_tokenizer["behavior"] == "Isolated")
                }
                (_, Some(literal)) if literal.chars().count() == 1 => Ok(false),
                _ => Err(format!("no proof for the split pattern {pattern}")),
            }
        }
        Some("Sequence") => {
            let mut splits = false;
            for part in pre_tokenizer["pretokenizers"].as_array().into_iter().flatten() {
                splits |= splits_at_white_space(part)?;
            }
            Ok(splits)
        }
        other => Err(format!("no proof for the pre-tokenizer {}", other.unwrap_or("without a type"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tokenizer(pre_tokenizer: &Value, vocabulary: &Value) -> Value {
        json!({"model": {"type": "BPE", "vocab": vocabulary, "merges": []}, "pre_tokenizer": pre_tokenizer,
               "normalizer": null, "added_tokens": []})
    }

    #[test]
    fn a_byte_level_tokenizer_is_cut_before_white_space() {
        let boundaries = Boundaries::of(&tokenizer(&json!({"type": "ByteLevel", "use_regex": true}), &json!({"a": 0})));
        assert_eq!(boundaries.last_cut("Answer: B\n\n"), Some(9));
        assert_eq!(boundaries.last_cut("one.\n\n"), None);
        assert_eq!(boundaries.last_cut("one two."), Some(3));
    }

    #[test]
    fn a_token_across_the_cut_forbids_it() {
        let boundaries = Boundaries::of(&tokenizer(&Value::Null, &json!({"a": 0, "B\n": 1, "of▁the": 2})));
        assert_eq!(boundaries.last_cut("A\nB\n"), Some(1));
        assert_eq!(boundaries.last_cut("of x"), None);
        assert_eq!(boundaries.last_cut("to x"), Some(2));
    }

    #[test]
    fn the_unproven_gets_no_cuts_and_a_reason() {
        let boundaries = Boundaries::of(&tokenizer(&json!({"type": "BertPreTokenizer"}), &json!({"a": 0})));
        assert_eq!(boundaries.last_cut("Answer: B\n\n"), None);
        assert!(boundaries.why_none().unwrap().contains("BertPreTokenizer"));
        let unigram = Boundaries::of(&json!({"model": {"type": "Unigram"}}));
        assert!(unigram.why_none().unwrap().contains("Unigram"));
    }
}
