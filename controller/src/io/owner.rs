//! The task that owns the [`Controller`].

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use config::Resources;
use futures::{
    StreamExt as _,
    stream::{BoxStream, select},
};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Client, ResourceExt as _,
    runtime::{
        events::{self, EventType},
        watcher,
    },
};
use shell::{
    events::Events,
    probes::{Condition, Pulses},
    resources::{Selection, Update, resources},
    slim::SlimService,
    watch::{Change, changes_if_served, lists},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Duty, Scrape,
    lease::{Candidacy, Permit},
    metrics::Metrics,
    now,
    webhook::Admission,
    write::{Done, Writer},
};
use crate::{
    controller::{Action, Controller, Event},
    service::{Service, ServiceKey},
    status::{CONFIGURATION_STATE, Notice, NoticeKind, Regarding},
};

/// Watch events that are taken in before actions are performed.
const BATCH: usize = 500;
/// What is in flight at the end gets so long to arrive.
const FAREWELL: Duration = Duration::from_secs(2);

/// What others want to know of the controller.
pub(super) struct Questions {
    pub scrapes: mpsc::Receiver<Scrape>,
    pub pulses: Pulses,
    pub admissions: mpsc::Receiver<Admission>,
}

pub(super) struct Owner {
    pub controller: Controller,
    pub duty: Duty,
    pub class: Option<String>,
    /// The client for watches.
    pub watched: Client,
    pub namespace: String,
    pub writer: Writer,
    pub events: Events,
    pub metrics: Metrics,
    pub leads: watch::Sender<bool>,
    /// To be fulfilled when the first list of every kind is there.
    pub listed: Option<Condition>,
}

/// What comes from the watches, apart from Services.
enum Input {
    Resources(Update),
    ConfigurationState(Change<crds::ConfigurationState>),
}

/// Where the watch of Services is.
enum Services {
    /// Nothing was asked yet.
    Unasked,
    /// A list is under way; these have come so far.
    Listing(BTreeSet<ServiceKey>),
    Listed,
}

/// How the run stands.
struct Run {
    candidacy: Candidacy,
    /// The term in which this replica leads.
    permit: Option<(u64, Permit)>,
    services: Services,
    changes: BoxStream<'static, Vec<watcher::Event<SlimService>>>,
    /// Whether the controller was told that it leads.
    decides: bool,
    /// Newer than what the controller knows, while Services are not listed yet.
    resources: Option<Arc<Resources>>,
    state_seen: bool,
    writes: JoinSet<Done>,
}

impl Owner {
    pub async fn run(
        mut self,
        candidacy: Candidacy,
        mut questions: Questions,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut inputs = self.inputs();
        let mut run = Run {
            candidacy,
            permit: None,
            services: Services::Unasked,
            changes: self.services(),
            decides: false,
            resources: None,
            state_seen: false,
            writes: JoinSet::new(),
        };
        self.term_changed(&mut run);
        run.services = Services::Listing(BTreeSet::new());
        loop {
            let deadline = self.controller.poll_timeout().map(tokio::time::Instant::from_std);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = run.candidacy.changed() => self.term_changed(&mut run),
                Some(done) = run.writes.join_next() => self.written(&mut run, done?),
                Some(pulse) = questions.pulses.next() => pulse.answer(),
                Some(admission) = questions.admissions.recv() => admission.answer(&self.controller),
                Some(scrape) = questions.scrapes.recv() => {
                    // Nobody minds when the client did not wait.
                    let _ = scrape.send(self.metrics.scrape(&self.controller));
                }
                Some(inputs) = inputs.next() => {
                    for input in inputs {
                        self.input(&mut run, input);
                    }
                }
                Some(changes) = run.changes.next() => {
                    for change in changes {
                        self.service(&mut run, change);
                    }
                }
                () = sleep_until(deadline.unwrap_or_else(tokio::time::Instant::now)),
                    if deadline.is_some() =>
                {
                    let actions = self.controller.handle_timeout(now());
                    self.perform(&mut run, actions);
                }
            }
            self.events.hold(self.controller.has_backlog());
        }
        info!(in_flight = run.writes.len(), "stopping");
        let arrive = async { while run.writes.join_next().await.is_some() {} };
        if timeout(FAREWELL, arrive).await.is_err() {
            warn!("writes in flight given up");
        }
        run.candidacy.release().await;
        Ok(())
    }

    fn services(&self) -> BoxStream<'static, Vec<watcher::Event<SlimService>>> {
        let api = Api::<SlimService>::all(self.watched.clone());
        let config = watcher::Config::default();
        lists(api, config, &self.metrics.api).ready_chunks(BATCH).boxed()
    }

    fn inputs(&self) -> BoxStream<'static, Vec<Input>> {
        let metrics = &self.metrics.api;
        let resources = resources(&self.watched, &self.namespace, Selection::Labelled, metrics);
        let state =
            Api::<crds::ConfigurationState>::namespaced(self.watched.clone(), &self.namespace);
        let ours =
            watcher::Config::default().fields(&format!("metadata.name={CONFIGURATION_STATE}"));
        let state = changes_if_served(state, ours, metrics).map(Input::ConfigurationState);
        // Whatever is there already, so that a storm of changes to the configuration is looked at
        // once.
        select(resources.map(Input::Resources), state).ready_chunks(BATCH).boxed()
    }

    /// Looks whether this replica leads now, or again, or not any more.
    fn term_changed(&mut self, run: &mut Run) {
        let term = run.candidacy.leadership().term();
        let known = run.permit.as_ref().map(|(term, _)| *term);
        if term == known {
            return;
        }
        if known.is_some() {
            run.permit = None;
            run.decides = false;
            self.handle(run, Event::StandBy);
        }
        if let Some(term) = term {
            run.permit = Some((term, run.candidacy.permit(term)));
            self.metrics.terms.inc();
            // The watch may lag behind what the leader before us wrote: begin with a new list.
            if !matches!(run.services, Services::Unasked) {
                run.services = Services::Listing(BTreeSet::new());
                run.changes = self.services();
            }
        }
        self.metrics.leader.set(i64::from(term.is_some()));
        self.leads.send_replace(term.is_some());
    }

    fn service(&mut self, run: &mut Run, event: watcher::Event<SlimService>) {
        match event {
            watcher::Event::Init => run.services = Services::Listing(BTreeSet::new()),
            watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
                let Some(service) = Service::new(&object.into(), self.class.as_deref()) else {
                    return;
                };
                let key = service.key.clone();
                self.handle(run, Event::ServiceApplied(Box::new(service)));
                if let Services::Listing(seen) = &mut run.services
                    && self.controller.knows(&key)
                {
                    seen.insert(key);
                }
            }
            watcher::Event::Delete(object) => {
                let key =
                    ServiceKey::new(object.namespace().unwrap_or_default(), object.name_any());
                self.handle(run, Event::ServiceDeleted(key));
            }
            watcher::Event::InitDone => {
                let services = std::mem::replace(&mut run.services, Services::Listed);
                if let Services::Listing(seen) = services {
                    let gone = self.controller.services().filter(|key| !seen.contains(*key));
                    for key in gone.cloned().collect::<Vec<_>>() {
                        self.handle(run, Event::ServiceDeleted(key));
                    }
                }
                if run.permit.is_some() && self.duty == Duty::All && !run.decides {
                    run.decides = true;
                    self.handle(run, Event::Leading);
                }
                self.caught_up(run);
            }
        }
    }

    fn input(&mut self, run: &mut Run, input: Input) {
        match input {
            Input::Resources(Update::Whole(resources)) => {
                run.resources = Some(resources);
                self.caught_up(run);
            }
            Input::Resources(Update::Status(object)) => {
                self.handle(run, Event::ObjectStatusChanged(object));
            }
            Input::ConfigurationState(Change::Applied(state)) => {
                run.state_seen = true;
                let status = state.status.unwrap_or_default();
                self.handle(run, Event::ConfigurationStateSeen(Some(Box::new(status))));
            }
            Input::ConfigurationState(Change::Deleted(_)) => {
                self.handle(run, Event::ConfigurationStateSeen(None));
            }
            Input::ConfigurationState(Change::Listed) => {
                if !run.state_seen {
                    self.handle(run, Event::ConfigurationStateSeen(None));
                }
            }
        }
    }

    /// Hands on the configuration once Services are listed, and ends the start.
    fn caught_up(&mut self, run: &mut Run) {
        if self.listed.is_some() && !matches!(run.services, Services::Listed) {
            return;
        }
        let Some(resources) = run.resources.take() else { return };
        self.handle(run, Event::ResourcesChanged(resources));
        if let Some(listed) = self.listed.take() {
            self.handle(run, Event::Synced);
            listed.fulfill();
            info!(services = self.controller.services().count(), "everything is listed");
        }
    }

    fn written(&mut self, run: &mut Run, done: Done) {
        self.metrics.write_seconds.observe(done.took.as_secs_f64());
        if let Some(error) = done.error {
            self.metrics.api.update_errors.inc();
            warn!(error, "write failed");
        }
        self.handle(run, done.event);
    }

    fn handle(&mut self, run: &mut Run, event: Event) {
        let started = Instant::now();
        let actions = self.controller.handle(event, now());
        self.metrics.decide_seconds.observe(started.elapsed().as_secs_f64());
        self.perform(run, actions);
    }

    fn perform(&mut self, run: &mut Run, actions: Vec<Action>) {
        let Some((_, permit)) = &run.permit else { return };
        for action in actions {
            let (writer, permit) = (self.writer.clone(), permit.clone());
            match action {
                Action::PatchService { key, body } => {
                    run.writes.spawn(async move { writer.service(permit, key, body).await });
                }
                Action::PatchStatus { object, body } => {
                    run.writes.spawn(async move { writer.status(permit, object, body).await });
                }
                Action::PatchConfigurationState { body } => {
                    run.writes.spawn(async move { writer.configuration_state(permit, body).await });
                }
                Action::PublishEvent { regarding, notice } => self.publish(regarding, notice),
            }
        }
    }

    fn publish(&self, regarding: Regarding, notice: Notice) {
        let object = format!("{} {}/{}", regarding.kind, regarding.namespace, regarding.name);
        match notice.kind {
            NoticeKind::Normal => info!(object, reason = notice.reason, "{}", notice.note),
            NoticeKind::Warning => warn!(object, reason = notice.reason, "{}", notice.note),
        }
        self.events.publish(reference(regarding), event(notice));
    }
}

fn reference(regarding: Regarding) -> ObjectReference {
    ObjectReference {
        api_version: Some(regarding.api_version.to_owned()),
        kind: Some(regarding.kind.to_owned()),
        namespace: Some(regarding.namespace),
        name: Some(regarding.name),
        uid: Some(regarding.uid).filter(|uid| !uid.is_empty()),
        ..ObjectReference::default()
    }
}

fn event(notice: Notice) -> events::Event {
    events::Event {
        type_: match notice.kind {
            NoticeKind::Normal => EventType::Normal,
            NoticeKind::Warning => EventType::Warning,
        },
        reason: notice.reason.to_owned(),
        note: Some(notice.note),
        action: "Assign".to_owned(),
        secondary: None,
    }
}
