//! All custom resources of our namespace, and the Secrets that peers name, as one value.

use std::{collections::BTreeMap, fmt::Debug};

use config::{Resources, Secret};
use k8s_openapi::api::core::v1 as core;
use kube::{
    Api, Client, Resource, ResourceExt as _, core::DeserializeGuard, core::NamespaceResourceScope,
    runtime::watcher,
};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tracing::warn;

use crate::watch::{Change, Mirror, follow};

/// Changes waiting for the mirror; a watch that is ahead of it waits.
const QUEUE: usize = 256;

/// Which objects go into the value.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Where the custom resources live.
    pub namespace: String,
    /// Read the passwords of BGP peers (Secrets of type `kubernetes.io/basic-auth`).
    pub secrets: bool,
    /// Read the labels of every Namespace, which decide who may use a pool.
    pub namespaces: bool,
}

/// Follows everything for ever and hands the whole to `sink` whenever something changed, the first
/// time when every list is complete. Ends when `sink` returns false.
pub async fn follow_resources(
    client: Client,
    selection: Selection,
    mut sink: impl AsyncFnMut(Resources) -> bool,
) {
    let (sender, mut receiver) = mpsc::channel(QUEUE);
    let ns = selection.namespace.as_str();
    let mut waiting = 6;
    follow_kind(&client, ns, &sender, |m| &mut m.pools);
    follow_kind(&client, ns, &sender, |m| &mut m.l2_advertisements);
    follow_kind(&client, ns, &sender, |m| &mut m.bgp_advertisements);
    follow_kind(&client, ns, &sender, |m| &mut m.bgp_peers);
    follow_kind(&client, ns, &sender, |m| &mut m.bfd_profiles);
    follow_kind(&client, ns, &sender, |m| &mut m.communities);
    if selection.secrets {
        waiting += 1;
        let only = watcher::Config::default().fields("type=kubernetes.io/basic-auth");
        spawn(
            Api::<core::Secret>::namespaced(client.clone(), ns),
            only,
            &sender,
            |mirrors, change| match change {
                Change::Applied(secret) => mirrors.secrets.apply(*secret),
                Change::Deleted(key) => mirrors.secrets.delete(&key),
                Change::Listed => {}
            },
        );
    }
    if selection.namespaces {
        waiting += 1;
        let all = watcher::Config::default();
        spawn(Api::<core::Namespace>::all(client.clone()), all, &sender, |mirrors, change| {
            match change {
                Change::Applied(namespace) => mirrors.namespaces.apply(*namespace),
                Change::Deleted(key) => mirrors.namespaces.delete(&key),
                Change::Listed => {}
            }
        });
    }
    drop(sender);
    let mut mirrors = Mirrors::default();
    while let Some(first) = receiver.recv().await {
        let mut next = Some(first);
        while let Some(update) = next {
            waiting -= usize::from(update.listed);
            (update.apply)(&mut mirrors);
            next = receiver.try_recv().ok();
        }
        if waiting == 0 && !sink(mirrors.resources()).await {
            return;
        }
    }
}

#[derive(Default)]
struct Mirrors {
    pools: Mirror<crds::IPAddressPool>,
    l2_advertisements: Mirror<crds::L2Advertisement>,
    bgp_advertisements: Mirror<crds::BGPAdvertisement>,
    bgp_peers: Mirror<crds::BGPPeer>,
    bfd_profiles: Mirror<crds::BFDProfile>,
    communities: Mirror<crds::Community>,
    secrets: Mirror<core::Secret>,
    namespaces: Mirror<core::Namespace>,
}

impl Mirrors {
    fn resources(&self) -> Resources {
        Resources {
            pools: self.pools.all(),
            l2_advertisements: self.l2_advertisements.all(),
            bgp_advertisements: self.bgp_advertisements.all(),
            bgp_peers: self.bgp_peers.all(),
            bfd_profiles: self.bfd_profiles.all(),
            communities: self.communities.all(),
            secrets: self.secrets.all().into_iter().map(read_secret).collect(),
            nodes: BTreeMap::new(),
            namespaces: self
                .namespaces
                .all()
                .into_iter()
                .map(|namespace| (namespace.name_any(), namespace.labels().clone()))
                .collect(),
        }
    }
}

fn read_secret(secret: core::Secret) -> (String, Secret) {
    let password = secret.data.as_ref().and_then(|data| data.get("password"));
    let password = password.and_then(|bytes| String::from_utf8(bytes.0.clone()).ok());
    (secret.name_any(), Secret { kind: secret.type_.unwrap_or_default(), password })
}

struct Update {
    listed: bool,
    apply: Box<dyn FnOnce(&mut Mirrors) + Send>,
}

/// Follows one custom kind. An object that does not even parse is left out, and said so, so that
/// it cannot keep the good ones from being read.
fn follow_kind<K>(
    client: &Client,
    namespace: &str,
    sender: &mpsc::Sender<Update>,
    mirror: fn(&mut Mirrors) -> &mut Mirror<K>,
) where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let api = Api::<DeserializeGuard<K>>::namespaced(client.clone(), namespace);
    spawn(api, watcher::Config::default(), sender, move |mirrors, change| match change {
        Change::Applied(guard) => match guard.0 {
            Ok(object) => mirror(mirrors).apply(object),
            Err(invalid) => {
                let name = invalid.metadata.name.unwrap_or_default();
                let namespace = invalid.metadata.namespace.unwrap_or_default();
                warn!(kind = %K::kind(&()), name, error = %invalid.error, "object left out: it does not match its schema");
                mirror(mirrors).delete(&(namespace, name));
            }
        },
        Change::Deleted(key) => mirror(mirrors).delete(&key),
        Change::Listed => {}
    });
}

fn spawn<K>(
    api: Api<K>,
    config: watcher::Config,
    sender: &mpsc::Sender<Update>,
    apply: impl Fn(&mut Mirrors, Change<K>) + Clone + Send + Sync + 'static,
) where
    K: Resource<DynamicType: Default> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let sender = sender.clone();
    tokio::spawn(follow(api, config, async move |change| {
        let listed = matches!(change, Change::Listed);
        let apply = apply.clone();
        let update = Update { listed, apply: Box::new(move |mirrors| apply(mirrors, change)) };
        sender.send(update).await.is_ok()
    }));
}
