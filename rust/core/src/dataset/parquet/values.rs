//! Values of the columns beyond a question's own, as JSON, and which columns JSON has no form for.
//!
//! A template of lm-eval sees Python's objects: dates, decimals, bytes. What a samples file shows of them is Python's `str` of the
//! object, and that is what stands here as text; a template that names such a column is refused, since text is not a date.

use parquet::basic::{ConvertedType, LogicalType, TimeUnit, Type as PhysicalType};
use parquet::file::metadata::ParquetMetaData;
use parquet::record::Field;
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};
use serde_json::{Number, Value};

const TIMESTAMPS: &str = "timestamps";

/// How the values of a column can be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As JSON.
    Json,
    /// As Python's text for the object that a template of lm-eval would see.
    Text {
        /// What the objects are.
        what: &'static str,
        /// Whether times of day with date are in UTC.
        utc: bool,
    },
    /// Not at all.
    Without {
        /// What the values are.
        what: &'static str,
    },
}

/// The form of the column at a place among the schema's roots; one that takes more than `largest` bytes is left out.
pub(super) fn form(schema: &SchemaDescriptor, root: usize, metadata: &ParquetMetaData, largest: u64) -> Form {
    let leaves = (0..schema.num_columns()).filter(|&leaf| schema.get_column_root_idx(leaf) == root);
    let leaves: Vec<usize> = leaves.collect();
    let forms: Vec<Form> = leaves.iter().map(|&leaf| leaf_form(&schema.column(leaf))).collect();
    let chunks = metadata.row_groups().iter().flat_map(|group| leaves.iter().map(|&leaf| group.column(leaf)));
    let size = chunks.map(|chunk| {
        let [bytes, values] =
            [chunk.uncompressed_size(), chunk.num_values()].map(|size| u64::try_from(size).unwrap_or(0));
        bytes.saturating_add(values.saturating_mul(size_of::<Value>() as u64))
    });
    if size.fold(0, u64::saturating_add) > largest {
        return Form::Without { what: "more than is read of such a column" };
    }
    if let Some(without) = forms.iter().find(|form| matches!(form, Form::Without { .. })) {
        return *without;
    }
    let utc = Form::Text { what: TIMESTAMPS, utc: true };
    if forms.contains(&utc) && forms.contains(&Form::Text { what: TIMESTAMPS, utc: false }) {
        return Form::Without { what: "times with and without a zone" };
    }
    match forms.iter().find(|form| matches!(form, Form::Text { .. })) {
        Some(Form::Text { what, .. }) => Form::Text { what, utc: forms.contains(&utc) },
        _ if holds_map(schema, root) => Form::Text { what: "maps", utc: false },
        _ => Form::Json,
    }
}

fn holds_map(schema: &SchemaDescriptor, root: usize) -> bool {
    let mut types = vec![&schema.root_schema().get_fields()[root]];
    while let Some(one) = types.pop() {
        let info = one.get_basic_info();
        if info.logical_type_ref() == Some(&LogicalType::Map)
            || matches!(info.converted_type(), ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE)
        {
            return true;
        }
        if !one.is_primitive() {
            types.extend(one.get_fields());
        }
    }
    false
}

/// The form of a leaf; the pairs of annotations are those that the crate turns into the value that they mean.
fn leaf_form(leaf: &ColumnDescriptor) -> Form {
    use ConvertedType as Old;
    let json = Form::Json;
    let text = |what| Form::Text { what, utc: false };
    let logical = leaf.logical_type_ref();
    match (leaf.physical_type(), logical, leaf.converted_type()) {
        (PhysicalType::BOOLEAN | PhysicalType::FLOAT | PhysicalType::DOUBLE, _, _)
        | (
            PhysicalType::INT32,
            None | Some(LogicalType::Integer(_) | LogicalType::Unknown),
            Old::NONE | Old::INT_8 | Old::INT_16 | Old::INT_32 | Old::UINT_8 | Old::UINT_16 | Old::UINT_32,
        )
        | (
            PhysicalType::INT64,
            None | Some(LogicalType::Integer(_) | LogicalType::Unknown),
            Old::NONE | Old::INT_64 | Old::UINT_64,
        )
        | (PhysicalType::BYTE_ARRAY, _, Old::UTF8 | Old::ENUM | Old::JSON)
        | (
            PhysicalType::BYTE_ARRAY,
            Some(LogicalType::String | LogicalType::Enum | LogicalType::Json | LogicalType::Unknown),
            Old::NONE,
        )
        | (PhysicalType::FIXED_LEN_BYTE_ARRAY, Some(LogicalType::Float16), Old::NONE) => json,
        (
            PhysicalType::INT32 | PhysicalType::INT64 | PhysicalType::BYTE_ARRAY | PhysicalType::FIXED_LEN_BYTE_ARRAY,
            _,
            Old::DECIMAL,
        ) => text("decimals"),
        (PhysicalType::INT32, _, Old::DATE) => text("dates"),
        (PhysicalType::INT32, _, Old::TIME_MILLIS) | (PhysicalType::INT64, _, Old::TIME_MICROS) => text("times"),
        (PhysicalType::INT64, Some(LogicalType::Timestamp(stamp)), Old::TIMESTAMP_MILLIS | Old::TIMESTAMP_MICROS)
            if stamp.unit != TimeUnit::NANOS =>
        {
            Form::Text { what: TIMESTAMPS, utc: stamp.is_adjusted_to_u_t_c }
        }
        (PhysicalType::INT64, None, Old::TIMESTAMP_MILLIS | Old::TIMESTAMP_MICROS) => {
            Form::Text { what: TIMESTAMPS, utc: true }
        }
        (_, Some(LogicalType::Uuid), _) => Form::Without { what: "UUIDs" },
        (PhysicalType::INT96, ..)
        | (PhysicalType::INT64, Some(LogicalType::Timestamp(_) | LogicalType::Time(_)), _) => {
            Form::Without { what: "times in a form that is not read" }
        }
        (PhysicalType::BYTE_ARRAY | PhysicalType::FIXED_LEN_BYTE_ARRAY, ..) => Form::Without { what: "binary data" },
        _ => Form::Without { what: "values of an unusual type" },
    }
}

/// A value as JSON; what JSON has no form for becomes null, and `lost` says what it was.
pub(super) fn json(field: Field, utc: bool, lost: &mut Option<String>) -> Value {
    let mut float = |value: f64| {
        Number::from_f64(value).map_or_else(
            || {
                lost.get_or_insert_with(|| value.to_string());
                Value::Null
            },
            Value::Number,
        )
    };
    match field {
        Field::Null => Value::Null,
        Field::Bool(value) => value.into(),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        Field::Float16(value) => float(value.to_f64()),
        Field::Float(value) => float(value.into()),
        Field::Double(value) => float(value),
        Field::Str(text) => text.into(),
        Field::Bytes(bytes) => or_lost(std::str::from_utf8(bytes.data()).ok().map(str::to_owned), "no UTF-8", lost),
        Field::Group(row) => {
            Value::Object(row.into_columns().into_iter().map(|(name, field)| (name, json(field, utc, lost))).collect())
        }
        Field::ListInternal(list) => list.elements().iter().map(|item| json(item.clone(), utc, lost)).collect(),
        // A list of pairs, as Arrow gives it.
        Field::MapInternal(map) => map
            .entries()
            .iter()
            .map(|(key, value)| Value::Array(vec![json(key.clone(), utc, lost), json(value.clone(), utc, lost)]))
            .collect(),
        Field::Decimal(_) => Value::from(decimal(&field.to_string())),
        Field::Date(days) => or_lost(date(i64::from(days)), "a date that Python has none for", lost),
        Field::TimeMillis(millis) => or_lost(time(i64::from(millis) * 1000), "no time of a day", lost),
        Field::TimeMicros(micros) => or_lost(time(micros), "no time of a day", lost),
        Field::TimestampMillis(millis) => {
            or_lost(millis.checked_mul(1000).and_then(|micros| timestamp(micros, utc)), "a time out of range", lost)
        }
        Field::TimestampMicros(micros) => or_lost(timestamp(micros, utc), "a time out of range", lost),
    }
}

fn or_lost(text: Option<String>, what: &str, lost: &mut Option<String>) -> Value {
    text.map_or_else(
        || {
            lost.get_or_insert_with(|| what.to_owned());
            Value::Null
        },
        Value::from,
    )
}

/// Python's `str(Decimal)`, from the digits with a point: in scientific notation where it is small.
fn decimal(positional: &str) -> String {
    let (sign, digits) = positional.strip_prefix('-').map_or(("", positional), |digits| ("-", digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all = [whole, fraction].concat();
    let significant = all.trim_start_matches('0');
    let significant = if significant.is_empty() { "0" } else { significant };
    let exponent = -(fraction.len() as i64);
    let adjusted = exponent + significant.len() as i64 - 1;
    if adjusted >= -6 {
        let point = if fraction.is_empty() { "" } else { "." };
        let whole = whole.trim_start_matches('0');
        let whole = if whole.is_empty() { "0" } else { whole };
        return format!("{sign}{whole}{point}{fraction}");
    }
    let (first, rest) = significant.split_at(1);
    let point = if rest.is_empty() { "" } else { "." };
    format!("{sign}{first}{point}{rest}E{adjusted}")
}

/// `YYYY-MM-DD`, for the years 1 to 9999 that Python has, from days since 1970.
fn date(days: i64) -> Option<String> {
    // Days since 0000-03-01, in eras of 400 years: Hinnant's `civil_from_days`.
    let shifted = days.checked_add(719_468)?;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (1..=9999).contains(&year).then(|| format!("{year:04}-{month:02}-{day:02}"))
}

const MICROS: i64 = 1_000_000;
const DAY: i64 = 24 * 60 * 60 * MICROS;

/// `HH:MM:SS`, with microseconds if there are any.
fn time(micros: i64) -> Option<String> {
    if !(0..DAY).contains(&micros) {
        return None;
    }
    let (seconds, fraction) = (micros / MICROS, micros % MICROS);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let fraction = if fraction == 0 { String::new() } else { format!(".{fraction:06}") };
    Some(format!("{hours:02}:{minutes:02}:{seconds:02}{fraction}"))
}

fn timestamp(micros: i64, utc: bool) -> Option<String> {
    let (date, time) = (date(micros.div_euclid(DAY))?, time(micros.rem_euclid(DAY))?);
    Some(format!("{date} {time}{}", if utc { "+00:00" } else { "" }))
}
