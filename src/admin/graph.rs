//! Graphs as SVG: a line over the last hour, with its latest and highest value as text.

use std::fmt::Write as _;

use super::history::History;
use crate::html::Text;

const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 60.0;

/// A series of one value a minute, oldest first.
#[derive(Debug)]
pub(super) struct Graph<'a> {
    pub(super) title: &'a str,
    pub(super) values: Vec<Option<f64>>,
    /// Writes a value with its unit.
    pub(super) show: fn(f64) -> String,
}

impl Graph<'_> {
    pub(super) fn html(&self) -> String {
        let title = Text(self.title);
        let highest = self.values.iter().flatten().copied().reduce(f64::max);
        let Some(highest) = highest else {
            return format!(
                "<figure><figcaption>{title}</figcaption><p class=soft>No data yet: one value a minute.</p></figure>"
            );
        };
        let latest = self.values.last().copied().flatten();
        let latest = latest.map_or_else(|| "–".to_owned(), self.show);
        let highest_text = (self.show)(highest);
        format!(
            "<figure><figcaption>{title}: <strong>{latest}</strong>, at most {highest_text}</figcaption>\
             <svg viewBox='0 0 {WIDTH} {HEIGHT}' preserveAspectRatio=none role=img \
             aria-label='{title} in the last hour: {latest} in the last minute, at most {highest_text}'>\
             {}</svg></figure>",
            self.lines(highest)
        )
    }

    /// Returns a line for each run of minutes with a value. The latest minute is at the right end.
    fn lines(&self, highest: f64) -> String {
        let step = WIDTH / f64::from(u32::try_from(History::POINTS - 1).unwrap_or(1));
        let scale = if highest > 0.0 { (HEIGHT - 4.0) / highest } else { 0.0 };
        let mut lines = String::new();
        let mut points = String::new();
        let mut x = WIDTH;
        for value in self.values.iter().rev() {
            match value {
                Some(value) => {
                    let y = HEIGHT - 2.0 - value * scale;
                    let _ = write!(points, "{x:.1},{y:.1} ");
                }
                None => flush(&mut points, &mut lines),
            }
            x -= step;
        }
        flush(&mut points, &mut lines);
        lines
    }
}

fn flush(points: &mut String, lines: &mut String) {
    let trimmed = points.trim_end();
    if let Some((x, y)) = trimmed.split_once(',').filter(|(_, rest)| !rest.contains(' ')) {
        let _ = write!(lines, "<circle cx='{x}' cy='{y}' r=2 />");
    } else if !trimmed.is_empty() {
        let _ = write!(lines, "<polyline points='{trimmed}'/>");
    }
    points.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(values: &[Option<f64>]) -> String {
        let show = |value| format!("{value:.0}/s");
        Graph { title: "Requests", values: values.to_vec(), show }.html()
    }

    #[test]
    fn gaps_divide_a_line() {
        let html = graph(&[Some(1.0), Some(2.0), None, Some(4.0)]);
        assert!(html.contains("<circle cx='300.0' cy='2.0' r=2 />"), "{html}");
        assert_eq!(html.matches("<polyline").count(), 1);
        assert!(html.contains("<strong>4/s</strong>, at most 4/s"), "{html}");
    }

    #[test]
    fn no_values_are_no_graph() {
        assert!(graph(&[]).contains("No data yet") && !graph(&[None]).contains("<svg"));
        assert!(graph(&[Some(0.0), Some(0.0)]).contains(",58.0"), "zero is at the bottom");
    }
}
