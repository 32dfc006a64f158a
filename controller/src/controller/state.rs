//! The controller's ConfigurationState: written when it says something else than it should, or is
//! not there.

use std::time::{Duration, Instant};

use crds::ConfigurationStateStatus;

use super::{Action, WriteResult};
use crate::status::StateSummary;

/// A write that failed is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct StateWrite {
    /// What the API server shows; `None`: not known yet.
    seen: Option<Seen>,
    in_flight: Option<StateSummary>,
    retry_at: Option<Instant>,
}

#[derive(Debug)]
enum Seen {
    Nothing,
    Status(Box<ConfigurationStateStatus>),
    /// As we wrote it.
    Ours(StateSummary),
}

impl StateWrite {
    pub fn seen(&mut self, status: Option<Box<ConfigurationStateStatus>>) {
        self.seen = Some(status.map_or(Seen::Nothing, Seen::Status));
    }

    pub fn done(&mut self, result: &WriteResult, now: Instant) {
        let Some(sent) = self.in_flight.take() else { return };
        match result {
            WriteResult::Written { .. } => {
                self.seen = Some(Seen::Ours(sent));
                self.retry_at = None;
            }
            WriteResult::Conflict
            | WriteResult::Gone
            | WriteResult::Failed
            | WriteResult::Unavailable { .. } => self.retry_at = Some(now + RETRY),
        }
    }

    pub fn pump(&mut self, wanted: &StateSummary, now: Instant, actions: &mut Vec<Action>) {
        if self.in_flight.is_some() || self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        self.retry_at = None;
        let shown = match &self.seen {
            None => true,
            Some(Seen::Nothing) => false,
            Some(Seen::Status(status)) => wanted.is_shown(status),
            Some(Seen::Ours(summary)) => summary == wanted,
        };
        if !shown {
            self.in_flight = Some(wanted.clone());
            actions.push(Action::PatchConfigurationState { body: wanted.body() });
        }
    }

    /// Nothing is to be written any more.
    pub fn stop(&mut self) {
        self.retry_at = None;
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.retry_at.filter(|_| self.in_flight.is_none())
    }
}
