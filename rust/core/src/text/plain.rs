//! Plain templates: the part of Jinja that is rendered here, because it cannot come out otherwise than in jinja2.
//!
//! ```text
//! template   = (text | print | loop)*
//! loop       = "{% for NAME in COLUMN %}" (text | print)* "{% endfor %}"       over a list of texts
//! print      = "{{" (COLUMN | NAME | loop.index | loop.index0) step* ("|" ("trim" | "length" | "count"))* "}}"
//! step       = "[" integer "]" | ".strip()" | ".lstrip()" | ".rstrip()"
//! ```
//!
//! Values are texts, whole numbers and lists of texts; only texts and numbers are printed. Whatever else a template holds, and
//! whatever else its columns hold, is jinja2's to render, errors too: nothing here has a message of its own. There is no recursion
//! and no loop inside a loop, so that the work is bounded by the template's length times that of the longest list.

use std::collections::HashSet;

use serde_json::Value as Json;

use crate::text::pyjson::push_formatted;
use crate::text::question::Question;
use crate::text::space::{strip, strip_end, strip_start};

/// Most bytes that a template may make of one question: about four million tokens.
pub const LONGEST_TEXT: usize = 1 << 24;

/// Names that mean something to jinja2 by themselves, so that a column's may not be what they say.
const TAKEN: [&str; 62] = [
    "and",
    "as",
    "autoescape",
    "block",
    "break",
    "call",
    "caller",
    "context",
    "continue",
    "cycler",
    "debug",
    "dict",
    "do",
    "elif",
    "else",
    "endautoescape",
    "endblock",
    "endcall",
    "endfilter",
    "endfor",
    "endif",
    "endmacro",
    "endraw",
    "endset",
    "endtrans",
    "endwith",
    "environment",
    "extends",
    "false",
    "False",
    "filter",
    "for",
    "from",
    "if",
    "ignore",
    "import",
    "in",
    "include",
    "is",
    "joiner",
    "kwargs",
    "lipsum",
    "loop",
    "macro",
    "missing",
    "namespace",
    "none",
    "None",
    "not",
    "or",
    "pluralize",
    "print",
    "range",
    "raw",
    "recursive",
    "scoped",
    "self",
    "set",
    "super",
    "true",
    "True",
    "varargs",
];

/// Why a question was not rendered here: something in it is jinja2's to render.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unproven;

/// A template of the form above.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainTemplate(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Print(Expression),
    Loop { variable: String, list: String, body: Vec<Part> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Expression {
    root: Root,
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Root {
    Name(String),
    /// `loop.index0` plus this.
    Index(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Item(isize),
    Strip,
    StripStart,
    StripEnd,
    Length,
}

impl PlainTemplate {
    /// The template, if it has this form.
    #[must_use]
    pub fn parse(source: &str) -> Option<Self> {
        // jinja2 makes one newline of each kind of line end.
        if source.contains('\r') {
            return None;
        }
        let mut parts = Vec::new();
        let mut open: Option<(String, String, Vec<Part>)> = None;
        let mut rest = source;
        loop {
            // One pass over the text: a search for each kind of tag would read to the end for each that is not there.
            let begin = rest.as_bytes().windows(2).position(|pair| pair[0] == b'{' && b"{%#".contains(&pair[1]));
            let (text, tag) = rest.split_at(begin.unwrap_or(rest.len()));
            let body = open.as_mut().map_or(&mut parts, |(_, _, body)| body);
            if !text.is_empty() {
                body.push(Part::Text(text.to_owned()));
            }
            if tag.is_empty() {
                break;
            }
            if let Some(tag) = tag.strip_prefix("{{") {
                let (inside, after) = tag.split_once("}}")?;
                let expression = Expression::parse(inside.trim_matches(is_blank), open.is_some())?;
                open.as_mut().map_or(&mut parts, |(_, _, body)| body).push(Part::Print(expression));
                rest = after;
            } else if let Some(tag) = tag.strip_prefix("{%") {
                let (inside, after) = tag.split_once("%}")?;
                let words: Vec<&str> = inside.split(is_blank).filter(|word| !word.is_empty()).collect();
                match (words.as_slice(), open.take()) {
                    (["for", variable, "in", list], None) if variable != list => {
                        open = Some((name(variable)?, name(list)?, Vec::new()));
                    }
                    (["endfor"], Some((variable, list, body))) => parts.push(Part::Loop { variable, list, body }),
                    _ => return None,
                }
                rest = after;
            } else {
                return None;
            }
        }
        open.is_none().then_some(Self(parts))
    }

    /// The columns that it names.
    #[must_use]
    pub fn columns(&self) -> HashSet<String> {
        let mut found = HashSet::new();
        add_columns(&self.0, None, &mut found);
        found
    }

    /// Appends what the template makes of a question.
    ///
    /// # Errors
    /// [`Unproven`] if it or the result is not plain; what was appended by then is then without meaning.
    pub fn render(&self, question: &Question, out: &mut String) -> Result<(), Unproven> {
        let start = out.len();
        render_parts(&self.0, question, None, start, out)?;
        // lm-eval takes a text of nothing but digits for the number of a choice.
        let text = &out[start..];
        if !text.is_empty() && text.chars().all(char::is_numeric) { Err(Unproven) } else { Ok(()) }
    }
}

fn add_columns(parts: &[Part], variable: Option<&str>, found: &mut HashSet<String>) {
    for part in parts {
        match part {
            Part::Print(Expression { root: Root::Name(name), .. }) if variable != Some(name) => {
                found.insert(name.clone());
            }
            Part::Loop { variable, list, body } => {
                found.insert(list.clone());
                add_columns(body, Some(variable), found);
            }
            Part::Text(_) | Part::Print(_) => {}
        }
    }
}

/// A turn of a loop: the variable's name and value, and which turn it is, from 0.
type Turn<'a> = (&'a str, &'a str, u64);

fn render_parts<'a>(
    parts: &'a [Part],
    question: &'a Question,
    turn: Option<Turn<'a>>,
    start: usize,
    out: &mut String,
) -> Result<(), Unproven> {
    for part in parts {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::Print(expression) => match expression.value(question, turn)? {
                Value::Text(text) => out.push_str(text),
                Value::Number(number) => push_formatted(out, format_args!("{number}")),
                Value::Texts(_) | Value::Json(_) => return Err(Unproven),
            },
            Part::Loop { variable, list, body } => {
                let list = column(question, list).ok_or(Unproven)?;
                for index in 0..list.length().ok_or(Unproven)? {
                    let Some(Value::Text(item)) = list.item(index as isize) else { return Err(Unproven) };
                    render_parts(body, question, Some((variable, item, index as u64)), start, out)?;
                }
            }
        }
        if out.len() - start > LONGEST_TEXT {
            return Err(Unproven);
        }
    }
    Ok(())
}

/// What a column or an expression holds.
#[derive(Clone, Copy)]
enum Value<'a> {
    Text(&'a str),
    Number(i128),
    Texts(&'a [String]),
    Json(&'a [Json]),
}

impl<'a> Value<'a> {
    fn of_json(value: &'a Json) -> Option<Self> {
        match value {
            Json::String(text) => Some(Self::Text(text)),
            Json::Array(items) => Some(Self::Json(items)),
            Json::Number(number) => {
                number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from)).map(Self::Number)
            }
            Json::Null | Json::Bool(_) | Json::Object(_) => None,
        }
    }

    /// Number of items of a list.
    fn length(self) -> Option<usize> {
        match self {
            Self::Texts(items) => Some(items.len()),
            Self::Json(items) => Some(items.len()),
            Self::Text(_) | Self::Number(_) => None,
        }
    }

    /// An item of a list, counted from the end if `index` is negative.
    fn item(self, index: isize) -> Option<Self> {
        let length = self.length()?;
        let place = if index < 0 { length.checked_sub(index.unsigned_abs())? } else { index.unsigned_abs() };
        match self {
            Self::Texts(items) => items.get(place).map(|text| Self::Text(text)),
            Self::Json(items) => items.get(place).and_then(Self::of_json),
            Self::Text(_) | Self::Number(_) => None,
        }
    }

    fn after(self, step: Step) -> Option<Self> {
        match (step, self) {
            (Step::Item(index), list) => list.item(index),
            (Step::Strip, Self::Text(text)) => Some(Self::Text(strip(text))),
            (Step::StripStart, Self::Text(text)) => Some(Self::Text(strip_start(text))),
            (Step::StripEnd, Self::Text(text)) => Some(Self::Text(strip_end(text))),
            (Step::Length, Self::Text(text)) => Some(Self::Number(text.chars().count() as i128)),
            (Step::Length, list) => list.length().map(|length| Self::Number(length as i128)),
            _ => None,
        }
    }
}

fn column<'a>(question: &'a Question, name: &str) -> Option<Value<'a>> {
    match name {
        "question" => Some(Value::Text(&question.question)),
        "choices" => Some(Value::Texts(&question.choices)),
        "answer" => Some(Value::Number(question.answer as i128)),
        "subject" => question.subject.as_deref().map(Value::Text),
        _ => question.extra.get(name).and_then(Value::of_json),
    }
}

impl Expression {
    fn parse(text: &str, in_loop: bool) -> Option<Self> {
        let mut filters = text.split('|').map(|piece| piece.trim_matches(is_blank));
        let (root, mut rest) = match filters.next()? {
            "loop.index" if in_loop => (Root::Index(1), ""),
            "loop.index0" if in_loop => (Root::Index(0), ""),
            primary => {
                let end = primary.find(['.', '[']).unwrap_or(primary.len());
                (Root::Name(name(&primary[..end])?), &primary[end..])
            }
        };
        let mut steps = Vec::new();
        while !rest.is_empty() {
            let methods = [(".strip()", Step::Strip), (".lstrip()", Step::StripStart), (".rstrip()", Step::StripEnd)];
            if let Some((method, step)) = methods.into_iter().find(|(method, _)| rest.starts_with(method)) {
                steps.push(step);
                rest = &rest[method.len()..];
            } else {
                let (index, after) = rest.strip_prefix('[')?.split_once(']')?;
                steps.push(Step::Item(integer(index)?));
                rest = after;
            }
        }
        for filter in filters {
            steps.push(match filter {
                "trim" => Step::Strip,
                "length" | "count" => Step::Length,
                _ => return None,
            });
        }
        Some(Self { root, steps })
    }

    fn value<'a>(&self, question: &'a Question, turn: Option<Turn<'a>>) -> Result<Value<'a>, Unproven> {
        let root = match (&self.root, turn) {
            (Root::Index(base), Some((_, _, index))) => Some(Value::Number(i128::from(index + base))),
            (Root::Index(_), None) => None,
            (Root::Name(name), Some((variable, item, _))) if name == variable => Some(Value::Text(item)),
            (Root::Name(name), _) => column(question, name),
        };
        self.steps.iter().try_fold(root.ok_or(Unproven)?, |value, &step| value.after(step).ok_or(Unproven))
    }
}

/// White space between tokens, as far as it is taken here.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\n' | '\t')
}

/// The name of a column or variable, if it is one that means nothing else.
fn name(text: &str) -> Option<String> {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && !TAKEN.contains(&text);
    plain.then(|| text.to_owned())
}

/// A whole number as both Jinja and Rust read it.
fn integer(text: &str) -> Option<isize> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit())
        && (1..=6).contains(&digits.len())
        && (digits.len() == 1 || !digits.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn question() -> Question {
        let extra = json!({"level": 3, "tags": ["x ", "y"], "mixed": ["x", 1], "weight": 0.5, "checked": true});
        Question {
            question: "\u{1c} Which bird is blue? ".to_owned(),
            choices: ["wren", " jay\u{a0}"].map(String::from).to_vec(),
            answer: 1,
            subject: None,
            extra: extra.as_object().cloned().unwrap_or_default(),
        }
    }

    fn rendered(source: &str) -> Result<String, Unproven> {
        let mut out = String::new();
        PlainTemplate::parse(source).ok_or(Unproven)?.render(&question(), &mut out).map(|()| out)
    }

    #[test]
    fn columns_items_and_loops_are_printed() {
        let source = "Q: {{ question.strip() }} ({{level}})\n{% for one in choices %}{{ loop.index }}) {{one|trim}}\n{% endfor %}\
                      {{ choices[-1].rstrip() }}{{ tags[0] }}{{choices | length}} }} %}{";
        assert_eq!(rendered(source).unwrap(), "Q: Which bird is blue? (3)\n1) wren\n2) jay\n jayx 2 }} %}{");
    }

    #[test]
    fn everything_else_is_left_to_jinja2() {
        let others = [
            "{{ question.upper() }}",
            "{{- question }}",
            "{{ question -}}",
            "{# note #}{{ question }}",
            "{{ question }}\r\n",
            "{% if answer %}{{ question }}{% endif %}",
            "{% for a in choices %}{% for b in choices %}{% endfor %}{% endfor %}",
            "{% for a in choices %}{{ a }}",
            "{{ question",
            "{{ 'x' }}",
            "{{ range }}",
            "{{ none }}",
            "{{ loop.index }}",
            "{{ question | trim.strip() }}",
            "{{ choices[00] }}",
            "{{ }}",
        ];
        for source in others {
            assert_eq!(PlainTemplate::parse(source), None, "{source}");
        }
        let values = [
            "{{ choices }}",
            "{{ weight }}",
            "{{ checked }}",
            "{{ hint }}",
            "{{ subject }}",
            "{{ choices[2] }}",
            "{{ answer }}",
        ];
        for source in values.into_iter().chain(["{{ question[0] }}", "{% for x in mixed %}{{ x }}{% endfor %}"]) {
            assert_eq!(rendered(source), Err(Unproven), "{source}");
        }
    }

    #[test]
    fn a_text_too_long_is_left_alone() {
        let source = "{% for one in choices %}".to_owned() + &"x".repeat(LONGEST_TEXT / 2 + 1) + "{% endfor %}";
        assert_eq!(rendered(&source), Err(Unproven));
    }
}
