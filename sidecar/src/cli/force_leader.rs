//! `pgquorum force-leader`

use super::client::Target;
use super::engine;
use super::failure::{Context, Failure};
use super::output::Out;
use super::place::refuse_root;
use crate::config::{NodeConfig, Secrets};
use pgquorum_agent::cluster::Cluster;
use pgquorum_agent::force::{Forced, force, whole_log};
use pgquorum_agent::logstore::Restored;
use pgquorum_agent::member::Member;
use pgquorum_agent::quorum::majority;
use pgquorum_agent::types::{Lsn, NodeId, Position};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long a node has to answer; the questions are asked at once.
const CONNECT: Duration = Duration::from_secs(3);
const ANSWER: Duration = Duration::from_secs(5);

/// Last resort, when the majority of the nodes is lost for good. Stop the sidecar first, run this on the survivor with
/// the newest data, start it again. The node becomes a cluster of one: what only the lost nodes had is given up, also
/// if it was acknowledged. Refused while a majority answers. A lost node that turns up again is told that it has no
/// part in the cluster any more and must be joined as a new one.
#[derive(Debug, clap::Args)]
pub struct ForceLeaderArgs {
    /// This node's configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Do it. Without this it only says what would be lost.
    #[arg(long)]
    i_accept_data_loss: bool,
}

/// What another member said when it was asked.
struct Answer {
    node: NodeId,
    leader: Option<u64>,
    position: Option<Position>,
}

pub async fn run(args: ForceLeaderArgs, out: Out) -> Result<(), Failure> {
    refuse_root("force-leader")?;
    let config = NodeConfig::load(&args.config)?;
    let (identity, restored) = engine::read_store(&config)?;
    let forced = force(&restored, config.node, rand::random())
        .map_err(|e| Failure::failed("cannot_force", e.to_string()))?;
    let (timeline, lsn) = engine::stopped_at(&config).await?;
    let before = whole_log(&restored).or_fail("the cluster's log")?;
    let mine = before.position(timeline, lsn);
    out.note("asking the other members");
    let answers = ask_all(&config, &before).await;
    refuse_if_needless(config.node, &before, &answers)?;
    refuse_if_another_has_more(&before, mine, &answers)?;
    let loss = what_is_lost(&config, &before);
    if !args.i_accept_data_loss {
        return Err(Failure::failed(
            "not_accepted",
            format!(
                "nothing was changed. {loss} The nodes {:?} would be no members any more; none of them may be used \
                 again as it is. Make sure that they are off and stay off, then repeat this with --i-accept-data-loss",
                forced.abandoned
            ),
        ));
    }
    let kept = engine::replace_store(&config, &identity, &forced)?;
    report(&config, &args, &forced, &restored, &loss, &kept, out);
    Ok(())
}

/// Asks everybody else at once; who does not answer in time is taken for lost.
async fn ask_all(config: &NodeConfig, cluster: &Cluster) -> Vec<Answer> {
    let mut asked = JoinSet::new();
    let scheme = if config.tls_cert.is_some() { "https" } else { "http" };
    let secrets = Secrets::load(&config.secrets_file()).ok();
    for member in cluster.members.values().filter(|m| m.id != config.node) {
        let (node, address) = (member.id, member.api_address());
        let (token, ca) = (config.token_file.clone(), config.tls_ca.clone());
        let target = Target::at(&format!("{scheme}://{address}"), token, ca, secrets.as_ref());
        asked.spawn(async move {
            // Whatever listens there is taken for the node: in doubt it lives.
            timeout(CONNECT, tokio::net::TcpStream::connect(address)).await.ok()?.ok()?;
            let client = target.client().ok();
            let get = async |path: String| match &client {
                Some(client) => timeout(ANSWER, client.get(&path)).await.ok()?.ok(),
                None => None,
            };
            let leader = get("/leader".to_owned()).await.and_then(|l: Value| l["id"].as_u64());
            let position = get(format!("/node/{node}")).await.and_then(|n| {
                Some(Position { epoch: n["epoch"].as_u64()?, lsn: n["lsn"].as_str()?.parse::<Lsn>().ok()? })
            });
            Some(Answer { node, leader, position })
        });
    }
    asked.join_all().await.into_iter().flatten().collect()
}

fn refuse_if_needless(own: NodeId, cluster: &Cluster, answers: &[Answer]) -> Result<(), Failure> {
    let voters: Vec<NodeId> = cluster.members.values().filter(|m| m.is_voter()).map(|m| m.id).collect();
    let there = |n: &&NodeId| **n == own || answers.iter().any(|a| a.node == **n);
    let reached = voters.iter().filter(there).count();
    if let Some(answer) = answers.iter().find(|a| a.leader.is_some()) {
        return Err(Failure::failed(
            "there_is_a_leader",
            format!(
                "nothing was changed: node {} says that node {} leads, so the majority is not lost. Start this node's \
                 sidecar again; it will follow",
                answer.node,
                answer.leader.unwrap_or_default()
            ),
        ));
    }
    if reached >= majority(voters.len()) {
        return Err(Failure::failed(
            "majority_answers",
            format!(
                "nothing was changed: with this node {reached} of {} voters are there, and that is a majority. Start \
                 this node's sidecar again and they elect a leader by themselves; `pgquorum status` says for whom they \
                 wait, and `pgquorum node down N` that a node is not to be waited for",
                voters.len()
            ),
        ));
    }
    Ok(())
}

fn refuse_if_another_has_more(cluster: &Cluster, mine: Position, answers: &[Answer]) -> Result<(), Failure> {
    if let Some((node, position)) =
        answers.iter().filter_map(|a| Some((a.node, a.position?))).find(|(_, p)| *p > mine)
    {
        return Err(Failure::failed(
            "another_is_ahead",
            format!(
                "nothing was changed: node {node} answers and has more ({position}) than this node ({mine}). Run this \
                 there instead. If that node's data is of no use, stop its sidecar and repeat this"
            ),
        ));
    }
    let silent = |a: &&Answer| {
        a.position.is_none() && cluster.member(a.node).is_some_and(|member| member.holds_data())
    };
    if let Some(Answer { node, .. }) = answers.iter().find(silent) {
        return Err(Failure::failed(
            "position_unknown",
            format!(
                "nothing was changed: node {node} is there and does not say how far its data reach; they may be ahead of \
                 this node's ({mine}). Ask it: pgquorum status --url. If its data are of no use, or another program has \
                 its address now, stop that and repeat this"
            ),
        ));
    }
    Ok(())
}

/// In words, what going on with this node alone gives up.
fn what_is_lost(config: &NodeConfig, cluster: &Cluster) -> String {
    let durability = &cluster.durability;
    let alone =
        durability.voters.contains(&config.node) && durability.pledges_needed() == 1 && durability.k > 0;
    let only = durability.voters.len() == 1 && durability.voters.contains(&config.node);
    if alone || only {
        "This node has everything that was acknowledged, as far as its own log goes; what only other nodes had is \
         given up."
            .to_owned()
    } else {
        format!(
            "Whatever this node had not received is given up, ACKNOWLEDGED TRANSACTIONS AMONG IT: to be sure that none \
             is missing, {} of {} data nodes would be needed, and this is one.",
            durability.pledges_needed(),
            durability.voters.len()
        )
    }
}

fn report(
    config: &NodeConfig,
    args: &ForceLeaderArgs,
    forced: &Forced,
    before: &Restored,
    loss: &str,
    kept: &std::path::Path,
    out: Out,
) {
    let addresses: Vec<String> = whole_log(before)
        .map(|c| c.members.values().filter(|m| m.id != config.node).map(describe).collect())
        .unwrap_or_default();
    let document = json!({
        "node": config.node,
        "cluster-id": forced.cluster.cluster_id,
        "after-epoch": forced.after_epoch,
        "given-up": forced.abandoned,
        "kept": kept,
    });
    out.show(&document, || {
        format!(
            "Node {} is a cluster of its own now. {loss}\n\n\
             The next epoch is above {}; the cluster's log says what was done (pgquorum events). The former log is \
             kept in {}.\n\n\
             1. Start it: the service, or  pgquorum run --config {}\n\
             2. On each machine that was given up and exists ({}): stop the sidecar, save what you need, move its\n   \
                directory away, then  pgquorum join --leader http://{}:{} --dir DIR --ip ITS-ADDRESS --secrets FILE\n   \
                A sidecar that is started there with the old directory stops as soon as it reaches this node.\n\
             3. Until two more nodes are there, this one holds the only copy.",
            config.node,
            forced.after_epoch,
            kept.display(),
            args.config.display(),
            addresses.join(", "),
            config.ip,
            config.api_port,
        )
    });
}

fn describe(member: &Member) -> String {
    format!("node {} at {}", member.id, member.api_address())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgquorum_agent::entry::Entry;
    use pgquorum_agent::member::Role;
    use pgquorum_agent::settings::Settings;

    fn cluster() -> Cluster {
        let member = |id: NodeId, role| Member {
            id,
            ip: [127, 0, 0, 1].into(),
            db_port: 5000,
            api_port: 8000,
            role,
            down: false,
            auto_upgrade: false,
            identity: Some(id),
        };
        let mut cluster = Cluster::new("c".to_owned(), 1, member(1, Role::Node), Settings::default());
        for (id, role) in [(2, Role::Node), (3, Role::Node), (4, Role::Node), (5, Role::Witness)] {
            cluster.apply(id, 1, &Entry::AddNode { member: member(id, role) });
        }
        cluster
    }

    fn at(epoch: u64, lsn: u64) -> Position {
        Position { epoch, lsn: Lsn(lsn) }
    }

    fn answer(node: NodeId, position: Option<Position>) -> Answer {
        Answer { node, leader: None, position }
    }

    #[test]
    fn it_is_refused_while_a_majority_is_there_or_somebody_leads() {
        let code = |answers: &[Answer]| refuse_if_needless(1, &cluster(), answers).err().map(|f| f.code);
        assert_eq!(code(&[]), None);
        assert_eq!(code(&[answer(2, None)]), None, "two of five");
        assert_eq!(code(&[answer(2, None), answer(5, None)]).as_deref(), Some("majority_answers"));
        let leads = Answer { leader: Some(3), ..answer(2, None) };
        assert_eq!(code(&[leads]).as_deref(), Some("there_is_a_leader"));
    }

    #[test]
    fn it_is_refused_while_another_has_more_or_may_have() {
        let mine = at(7, 100);
        let code = |other| refuse_if_another_has_more(&cluster(), mine, &[other]).err().map(|f| f.code);
        for position in [at(7, 100), at(7, 99), at(6, 900)] {
            assert_eq!(code(answer(2, Some(position))), None, "{position}");
        }
        for position in [at(7, 101), at(8, 1)] {
            assert_eq!(code(answer(2, Some(position))).as_deref(), Some("another_is_ahead"), "{position}");
        }
        assert_eq!(
            code(answer(2, None)).as_deref(),
            Some("position_unknown"),
            "it is there and says nothing"
        );
        assert_eq!(code(answer(5, None)), None, "a witness has nothing");
    }
}
