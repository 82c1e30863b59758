//! Metrics at a moment, read back from their text form: a histogram of `prometheus_client` shows its counts nowhere else.

use std::time::Instant;

use super::Metrics;

/// All metrics at a moment.
#[derive(Clone, Debug)]
pub(crate) struct Samples {
    /// When they were read.
    pub(crate) at: Instant,
    series: Vec<Series>,
}

#[derive(Clone, Debug, PartialEq)]
struct Series {
    /// Without the prefix `cloakroom_`.
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

/// A quantile of a histogram, and the bucket that it is in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Quantile {
    /// As Prometheus estimates it: linearly within the bucket; above the last bound, that bound.
    pub(crate) estimate: f64,
    /// The quantile exceeds this.
    pub(crate) lower: f64,
    /// The quantile is at most this.
    pub(crate) upper: f64,
}

impl Metrics {
    /// Reads all metrics.
    pub(crate) fn samples(&self) -> Samples {
        Samples::parse(&self.text())
    }
}

impl Samples {
    /// Reads all metrics from their text form.
    pub(crate) fn parse(text: &str) -> Self {
        Self { at: Instant::now(), series: text.lines().filter_map(parse).collect() }
    }

    /// Returns the sum of all series of a metric; 0 if there is none.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        self.named(name).map(|series| series.value).sum()
    }

    /// Returns the series of a metric by the value of a label, added up over the other labels, in the order of their first
    /// appearance.
    pub(crate) fn by(&self, name: &str, label: &str) -> Vec<(&str, f64)> {
        let mut sums: Vec<(&str, f64)> = Vec::new();
        for series in self.named(name) {
            let Some(value) = series.label(label) else { continue };
            match sums.iter_mut().find(|(known, _)| *known == value) {
                Some((_, sum)) => *sum += series.value,
                None => sums.push((value, series.value)),
            }
        }
        sums
    }

    /// Returns the sum of the series that have this value of a label.
    pub(crate) fn of(&self, name: &str, label: &str, value: &str) -> f64 {
        let series = self.named(name).filter(|series| series.label(label) == Some(value));
        series.map(|series| series.value).sum()
    }

    /// Returns the values of two labels of each series of a metric, with its value.
    pub(crate) fn pairs(&self, name: &str, labels: [&str; 2]) -> Vec<([&str; 2], f64)> {
        let [one, other] = labels;
        self.named(name)
            .filter_map(|series| Some(([series.label(one)?, series.label(other)?], series.value)))
            .collect()
    }

    /// Returns the series of one value of a label, as samples of their own.
    pub(crate) fn only(&self, label: &str, value: &str) -> Self {
        let series = self.series.iter().filter(|series| series.label(label) == Some(value));
        Self { at: self.at, series: series.cloned().collect() }
    }

    /// Finds a quantile of a histogram since `earlier`, over all its series. `None` without observations.
    pub(crate) fn quantile_since(
        &self,
        earlier: &Self,
        name: &str,
        quantile: f64,
    ) -> Option<Quantile> {
        let name = format!("{name}_bucket");
        let earlier = earlier.by(&name, "le");
        let before = |bound: &str| {
            earlier.iter().find(|(known, _)| *known == bound).map_or(0.0, |(_, count)| *count)
        };
        let mut buckets: Vec<(f64, f64)> = self
            .by(&name, "le")
            .into_iter()
            .filter_map(|(bound, count)| Some((number(bound)?, count - before(bound))))
            .collect();
        buckets.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        let (_, total) = *buckets.last()?;
        if total <= 0.0 {
            return None;
        }
        let rank = quantile * total;
        let (mut lower, mut below) = (0.0, 0.0);
        for (upper, count) in buckets {
            if count >= rank && upper.is_finite() {
                let share = if count > below { (rank - below) / (count - below) } else { 1.0 };
                let estimate = lower + (upper - lower) * share;
                return Some(Quantile { estimate, lower, upper });
            }
            if upper.is_finite() {
                (lower, below) = (upper, count);
            }
        }
        Some(Quantile { estimate: lower, lower, upper: f64::INFINITY })
    }

    fn named(&self, name: &str) -> impl Iterator<Item = &Series> {
        self.series.iter().filter(move |series| series.name == name)
    }
}

impl Series {
    fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

fn number(text: &str) -> Option<f64> {
    if text == "+Inf" { Some(f64::INFINITY) } else { text.parse().ok() }
}

/// Parses a line of the text form: `name{label="value",…} number`. Comments have no series.
fn parse(line: &str) -> Option<Series> {
    let line = line.strip_prefix("cloakroom_")?;
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at_checked(end)?;
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = label_value(after)?;
            labels.push((label.to_owned(), value));
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        rest = rest.strip_prefix('}')?;
    }
    // An exemplar or a timestamp may follow.
    let value = number(rest.split_ascii_whitespace().next()?)?;
    Some(Series { name: name.to_owned(), labels, value })
}

/// Reads an escaped value up to its closing quote, and returns what follows.
fn label_value(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Event, Metrics, Outcome, StoreOperation};
    use super::*;

    #[test]
    fn series_are_added_up_by_label() {
        let text = "# TYPE x counter\ncloakroom_x_total{a=\"1\",b=\"q\\\"\\\\\"} 2\n\
                    cloakroom_x_total{a=\"1\",b=\"r\"} 3\ncloakroom_x_total{a=\"2\",b=\"r\"} 4\nother 1\n";
        let samples = Samples::parse(text);
        assert_eq!(samples.by("x_total", "a"), [("1", 5.0), ("2", 4.0)]);
        assert_eq!(samples.by("x_total", "b"), [("q\"\\", 2.0), ("r", 7.0)]);
        assert!((samples.sum("x_total") - 9.0).abs() < f64::EPSILON);
        assert!(samples.sum("y_total").abs() < f64::EPSILON);
    }

    #[test]
    fn reads_what_is_exported() {
        let metrics = Metrics::new();
        metrics.request(Outcome::Forwarded, 200, Duration::from_millis(1));
        metrics.events(Event::Created, 3);
        let samples = metrics.samples();
        let one = samples.of("requests_total", "outcome", "forwarded");
        let three = samples.of("session_events_total", "event", "created");
        assert_eq!((one.to_string(), three.to_string()), ("1".to_owned(), "3".to_owned()));
    }

    #[test]
    fn quantiles_are_of_the_time_between() {
        let metrics = Metrics::new();
        let call = |millis| {
            let duration = Duration::from_millis(millis);
            metrics.store_call(StoreOperation::Load, duration, false);
        };
        (0..100).for_each(|_| call(2000));
        let earlier = metrics.samples();
        let quantile = |quantile| {
            metrics.samples().quantile_since(&earlier, "store_duration_seconds", quantile)
        };
        let estimate = |part| quantile(part).map(|found: Quantile| found.estimate);
        assert_eq!(quantile(0.5), None);
        (0..99).for_each(|_| call(2));
        call(90);
        let (half, most, all) = (estimate(0.5), estimate(0.99), estimate(1.0));
        assert!(half.is_some_and(|half| half > 0.001 && half < 0.0025), "{half:?}");
        assert!(most.is_some_and(|most| most <= 0.0025), "{most:?}");
        assert!(all.is_some_and(|all| all > 0.09), "{all:?}");
        let half = quantile(0.5).map(|half| (half.lower, half.upper));
        assert_eq!(half, Some((0.001, 0.0025)), "2 ms are in this bucket");
        call(5000);
        let last = Quantile { estimate: 0.5, lower: 0.5, upper: f64::INFINITY };
        assert_eq!(quantile(1.0), Some(last), "the last bound");
    }
}
