use axum::{body::Body, http::header::CONTENT_TYPE};
use serde_json::json;
use tower::ServiceExt as _;

use super::*;
use crate::controller::Settings;

const POOLS: &str = "/validate-metallb-io-v1beta1-ipaddresspool";

/// Status and body of the answer to a review.
async fn post(router: &Router, path: &str, body: &Value) -> (StatusCode, Value) {
    let request = Request::post(path)
        .header(CONTENT_TYPE, "application/json")
        .body(Body::from(body.to_string()))
        .unwrap();
    let answer = router.clone().oneshot(request).await.unwrap();
    let status = answer.status();
    let body = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

/// A webhook whose owner answers always the same, and what it was asked.
fn answering(verdict: Verdict) -> (Router, mpsc::UnboundedReceiver<(Operation, String)>) {
    let (admissions, mut questions) = mpsc::channel::<Admission>(1);
    let (asked, log) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(admission) = questions.recv().await {
            asked.send((admission.operation, admission.candidate.object().to_string())).unwrap();
            admission.reply.send(verdict.clone()).unwrap();
        }
    });
    (router(admissions), log)
}

fn pool(addresses: &Value) -> Value {
    json!({
        "apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
        "metadata": {"name": "pool", "namespace": "metallb-system"},
        "spec": {"addresses": addresses},
    })
}

fn review(operation: &str, object: &Value, old_object: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u1", "operation": operation, "name": "pool", "namespace": "metallb-system",
            "kind": {"group": "metallb.io", "version": "v1beta1", "kind": "IPAddressPool"},
            "resource": {"group": "metallb.io", "version": "v1beta1", "resource": "ipaddresspools"},
            "userInfo": {"username": "somebody"}, "dryRun": true,
            "object": object, "oldObject": old_object,
        },
    })
}

#[tokio::test]
async fn the_owner_is_asked_about_what_there_is_to_ask() {
    let (router, mut asked) = answering(Ok(Vec::new()));
    let good = pool(&json!(["192.0.2.0/24"]));
    let unreadable = pool(&json!(7));
    let mut leaving = good.clone();
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    leaving["metadata"]["finalizers"] = json!(["example.org/f"]);
    let other = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "pool"}});
    let null = Value::Null;
    for (operation, object, old, question, allowed) in [
        ("CREATE", &good, &null, Some(Operation::Create), true),
        ("UPDATE", &good, &good, Some(Operation::Update), true),
        ("DELETE", &null, &good, Some(Operation::Delete), true),
        ("CREATE", &unreadable, &null, None, false),
        ("UPDATE", &unreadable, &good, None, false),
        ("DELETE", &null, &unreadable, None, true),
        ("UPDATE", &leaving, &leaving, None, true),
        ("CONNECT", &null, &null, None, true),
        ("CREATE", &other, &null, None, true),
    ] {
        let (status, answer) = post(&router, POOLS, &review(operation, object, old)).await;
        assert_eq!(status, 200);
        assert_eq!(answer["kind"], "AdmissionReview");
        assert_eq!(answer["response"]["uid"], "u1");
        assert_eq!(answer["response"]["allowed"], allowed, "{operation} {object}: {answer}");
        let question = question.map(|operation| (operation, "IPAddressPool \"pool\"".to_owned()));
        assert_eq!(asked.try_recv().ok(), question, "{operation} {object}");
        if !allowed {
            let message = answer["response"]["status"]["message"].as_str().unwrap();
            assert!(
                message.contains("IPAddressPool \"pool\"") && message.contains("7"),
                "{message}"
            );
        }
    }
}

#[tokio::test]
async fn verdicts_reach_the_user_in_whole() {
    let error = |spec| Candidate::from_json(&pool(spec)).unwrap_err();
    let errors = vec![error(&json!(7)), error(&json!("text"))];
    let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
    let (router, _asked) = answering(Err(errors));
    let request = review("CREATE", &pool(&json!([])), &Value::Null);
    let (_, answer) = post(&router, POOLS, &request).await;
    assert_eq!(answer["response"]["allowed"], false);
    assert_eq!(answer["response"]["status"]["code"], 403);
    assert_eq!(answer["response"]["status"]["message"], lines.join("\n"));

    let (router, _asked) = answering(Ok(vec!["mind this".to_owned()]));
    for path in ADMISSION_PATHS {
        let (_, answer) = post(&router, path, &request).await;
        assert_eq!(answer["response"]["allowed"], true);
        assert_eq!(answer["response"]["warnings"], json!(["mind this"]));
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_is_busy_or_gone_locks_nobody_out() {
    let request = review("CREATE", &pool(&json!(["192.0.2.0/24"])), &Value::Null);
    let (busy, _questions) = mpsc::channel(1);
    let (gone, _) = mpsc::channel(1);
    for admissions in [busy, gone] {
        let begin = tokio::time::Instant::now();
        let (_, answer) = post(&router(admissions), POOLS, &request).await;
        assert_eq!(answer["response"]["allowed"], true);
        assert_eq!(answer["response"]["warnings"], json!([NOT_CHECKED]));
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    }
}

#[tokio::test]
async fn what_is_not_read_yet_refuses_nothing() {
    let controller = Controller::new(Settings::default());
    let (reply, verdict) = oneshot::channel();
    let candidate = Candidate::from_json(&pool(&json!(["nonsense"]))).unwrap().unwrap();
    Admission { operation: Operation::Create, candidate, reply }.answer(&controller);
    assert_eq!(verdict.await.unwrap(), Ok(vec![NOT_READ.to_owned()]));
}

#[tokio::test]
async fn what_is_no_review_is_a_bad_request() {
    let (router, _asked) = answering(Ok(Vec::new()));
    for (path, body, status) in [
        (POOLS, json!({}), 400),
        (POOLS, json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}), 400),
        (CONVERSION_PATH, json!([]), 400),
        ("/validate", json!({}), 404),
    ] {
        assert_eq!(post(&router, path, &body).await.0, status, "{path} {body}");
    }
    let large = json!({ "padding": "x".repeat(ADMISSION_LIMIT) });
    assert_eq!(post(&router, POOLS, &large).await.0, 400);
}

#[tokio::test]
async fn a_list_is_converted_object_by_object() {
    let (router, _asked) = answering(Ok(Vec::new()));
    let peer = |name: &str, version: &str| {
        json!({
            "apiVersion": format!("metallb.io/{version}"), "kind": "BGPPeer",
            "metadata": {"name": name, "uid": format!("uid of {name}"), "labels": {"a": "b"}},
            "spec": {"myASN": 64500, "peerASN": 64501, "peerAddress": "192.0.2.1", "peerPort": 179},
        })
    };
    let review = |objects: Value| {
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview",
            "request": {"uid": "u2", "desiredAPIVersion": "metallb.io/v1beta2", "objects": objects},
        })
    };
    let objects = [peer("a", "v1beta1"), peer("b", "v1beta2"), peer("c", "v1beta1")];
    let (status, answer) = post(&router, CONVERSION_PATH, &review(json!(objects))).await;
    assert_eq!(status, 200);
    assert_eq!(answer["response"]["uid"], "u2");
    assert_eq!(answer["response"]["result"]["status"], "Success");
    let converted = answer["response"]["convertedObjects"].as_array().unwrap();
    assert_eq!(converted.len(), objects.len());
    for (before, after) in objects.iter().zip(converted) {
        assert_eq!(after["apiVersion"], "metallb.io/v1beta2");
        assert_eq!(after["metadata"], before["metadata"]);
    }

    let pool = pool(&json!([]));
    let (_, answer) = post(&router, CONVERSION_PATH, &review(json!([objects[0], pool]))).await;
    assert_eq!(answer["response"]["result"]["status"], "Failure");
    let message = answer["response"]["result"]["message"].as_str().unwrap();
    assert!(message.contains("IPAddressPool"), "{message}");
    assert_eq!(answer["response"]["convertedObjects"], json!([]));
}
