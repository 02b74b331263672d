//! Progress: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

use crate::simulate::recipe::Progress;

/// Shows [`Progress`] on standard error.
pub(super) struct Display {
    bar: Option<ProgressBar>,
    quiet: bool,
    begin: Instant,
    total: usize,
    done: usize,
    /// Tenths of the views already reported in plain lines.
    tenths: usize,
}

impl Display {
    pub(super) fn new(quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{msg:28} {bar:40} {pos}/{len} views, {eta} left")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(0).with_style(style)
        });
        Self { bar, quiet, begin: Instant::now(), total: 0, done: 0, tenths: 0 }
    }

    pub(super) fn show(&mut self, progress: Progress) {
        match progress {
            Progress::Views(total) => {
                self.total = total;
                self.say("projecting");
                if let Some(bar) = &self.bar {
                    bar.set_length(total as u64);
                }
            }
            Progress::Done(views) => {
                self.done += views;
                if let Some(bar) = &self.bar {
                    bar.set_position(self.done as u64);
                } else if !self.quiet {
                    let tenths = 10 * self.done / self.total.max(1);
                    if tenths > self.tenths {
                        self.tenths = tenths;
                        eprintln!(
                            "{:7.1} s  {} of {} views",
                            self.begin.elapsed().as_secs_f64(),
                            self.done,
                            self.total
                        );
                    }
                }
            }
            Progress::Step(name) => self.say(name),
        }
    }

    /// Names a step.
    pub(super) fn say(&self, step: &'static str) {
        if let Some(bar) = &self.bar {
            bar.set_message(step);
        } else if !self.quiet {
            eprintln!("{:7.1} s  {step}", self.begin.elapsed().as_secs_f64());
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
