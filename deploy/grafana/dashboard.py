"""Writes the Grafana dashboard: `python -m deploy.grafana.dashboard > deploy/grafana/dashboards/ortserve.json`. A test compares.

A screen from top to bottom: is it healthy, how much load, how late and where the time goes, how full the batches, what the GPU does.
Queries take the recording rules of deploy/prometheus/rules/recording.yaml; `$model` is a variable of the dashboard.
"""

from __future__ import annotations

import json
from typing import Any

from deploy.grafana.panels import BLUE, DATASOURCE, GREEN, RED, YELLOW, graph, stat, steps

WIDTH = 24  # Grafana's grid, in columns
MODEL = 'model=~"$model"'
BAD_FROM_ONE = steps((None, GREEN), (1, RED))
NO_GPU = "no GPU here"

ROWS: tuple[tuple[str, int, tuple[dict[str, Any], ...]], ...] = (
    (
        "Is it healthy?",
        4,
        (
            stat(
                "Alerts",
                "Firing now, of those in deploy/prometheus/rules/alerts.yaml.",
                ('count(ALERTS{alertname=~"Ortserve.+",alertstate="firing"}) or vector(0)', "firing"),
                thresholds=BAD_FROM_ONE,
            ),
            stat(
                "Workers not ready",
                "Workers the profile asks for that are not warm; an instance that does not answer counts as one.",
                (
                    'sum(clamp_min(ortserve_expected_workers - ortserve_ready_workers, 0) or up{job="ortserve"} == bool 0)',
                    "missing",
                ),
                thresholds=BAD_FROM_ONE,
            ),
            stat(
                "Errors",
                "Share of requests answered with 500, 503 or 504, over 5 minutes. Alert: 1 %.",
                ("max(job:ortserve_errors:ratio_rate5m)", "errors"),
                unit="percentunit",
                thresholds=steps((None, GREEN), (0.001, YELLOW), (0.01, RED)),
                none="no requests",
            ),
            stat(
                "Refused",
                "Share of requests refused for load (429, 504), over 5 minutes. Alert: 1 %.",
                (f"max(job_model:ortserve_refusals:ratio_rate5m{{{MODEL}}})", "refused"),
                unit="percentunit",
                thresholds=steps((None, GREEN), (0.001, YELLOW), (0.01, RED)),
                none="no requests",
            ),
            stat(
                "p99 over target",
                "p99 of 5 minutes over the profile's objectives.p99_ms. Above 100 %: alert.",
                (
                    f"max(job_model:ortserve_request_duration_seconds:p99_5m{{{MODEL}}} "
                    f"/ job_model:ortserve_p99_target_seconds:min{{{MODEL}}})",
                    "of the target",
                ),
                unit="percentunit",
                thresholds=steps((None, GREEN), (0.75, YELLOW), (1, RED)),
                none="no requests",
                decimals=0,
            ),
            stat(
                "Runs on",
                "Provider and precision that the session itself confirmed.",
                (f"count by (provider, precision) (ortserve_model_info{{{MODEL}}})", "{{provider}} {{precision}}"),
                text="name",
            ),
            stat(
                "Up for",
                "Since the youngest instance's start.",
                ("time() - max(ortserve_start_time_seconds)", "up"),
                unit="s",
                thresholds=steps((None, YELLOW), (900, BLUE)),
                decimals=0,
            ),
        ),
    ),
    (
        "How much load?",
        7,
        (
            graph(
                "Requests per second, by status",
                "Without probes and scrapes.",
                ("sum by (http_response_code) (job_code:ortserve_requests:rate1m) > 0", "{{http_response_code}}"),
                unit="reqps",
                stacked=True,
            ),
            graph(
                "Pictures per second",
                "Rows that went into a batch: a request may hold many.",
                (f"sum by (model) (job_model:ortserve_rows:rate1m{{{MODEL}}})", "{{model}}"),
            ),
            graph(
                "Requests in progress",
                "Read but not answered yet, without probes and scrapes.",
                ('sum by (endpoint) (bentoml_service_request_in_progress{endpoint!~"/healthz|/livez|/readyz|/metrics"})', "{{endpoint}}"),
                stacked=True,
            ),
            graph(
                "Refusals per second, by reason",
                "By the code of the answer's error.",
                (f"sum by (reason) (job_model_reason:ortserve_refusals:rate1m{{{MODEL}}}) > 0", "{{reason}}"),
                unit="reqps",
                stacked=True,
                none="none refused",
            ),
        ),
    ),
    (
        "How late, and where does the time go?",
        8,
        (
            graph(
                "Time to an answer",
                "Of answered requests, from arrival until the answer was ready. Dashed: the profile's target for the p99.",
                (f"max by (model) (job_model:ortserve_request_duration_seconds:p50_1m{{{MODEL}}})", "p50 {{model}}"),
                (f"max by (model) (job_model:ortserve_request_duration_seconds:p95_1m{{{MODEL}}})", "p95 {{model}}"),
                (f"max by (model) (job_model:ortserve_request_duration_seconds:p99_1m{{{MODEL}}})", "p99 {{model}}"),
                (f"min(job_model:ortserve_p99_target_seconds:min{{{MODEL}}})", "target"),
                unit="s",
                limit="target",
            ),
            graph(
                "Where the time of a mean answer goes",
                "Decode: bytes to pixels. Queue: waiting for a slot. Inference: the run of its batch, with all that is left.",
                (f"avg(job_model:ortserve_decode_duration_seconds:mean_1m{{{MODEL}}})", "decode"),
                (f"avg(job_model:ortserve_queue_duration_seconds:mean_1m{{{MODEL}}})", "queue"),
                (f"avg(job_model:ortserve_inference_wait_seconds:mean_1m{{{MODEL}}})", "inference"),
                unit="s",
                stacked=True,
            ),
            graph(
                "One run of the session",
                "Mean, whatever its batch: rises with the batch size, and where the device slows down.",
                (f"job_model:ortserve_inference_duration_seconds:mean_1m{{{MODEL}}}", "{{model}}"),
                unit="s",
            ),
        ),
    ),
    (
        "How full?",
        7,
        (
            graph(
                "Rows in a batch",
                "Mean of the batches that started. Dashed: the most the profile and the package allow.",
                (f"job_model:ortserve_batch_size_rows:mean_1m{{{MODEL}}}", "{{model}}"),
                (f"max(ortserve_batch_limit_rows{{{MODEL}}})", "limit"),
                limit="limit",
            ),
            graph(
                "Queue",
                "Fullest instance. At 100 % requests are refused; from 50 % on for a minute: alert.",
                (f"max by (model) (instance_model:ortserve_queue_fill:ratio{{{MODEL}}})", "{{model}}"),
                unit="percentunit",
                max=1,
            ),
            graph(
                "Slots busy",
                "Share of the time that the session computed, over all slots. At 100 % more requests only wait longer.",
                (f"job_model:ortserve_batch_slots_busy:ratio_rate1m{{{MODEL}}}", "{{model}}"),
                unit="percentunit",
                max=1,
            ),
        ),
    ),
    (
        "What does the GPU do?",
        5,
        (
            graph(
                "GPU busy",
                "NVML: share of the last sample in which a kernel ran. Low while the queue is full: alert.",
                ("ortserve_gpu_utilization_ratio", "{{instance}} GPU {{gpu}}"),
                unit="percentunit",
                max=1,
                none=NO_GPU,
            ),
            graph(
                "GPU memory in use",
                "By any process. From 95 % on: alert.",
                ("instance_gpu:ortserve_gpu_memory_used:ratio", "{{instance}} GPU {{gpu}}"),
                unit="percentunit",
                max=1,
                none=NO_GPU,
            ),
        ),
    ),
)


def panels() -> list[dict[str, Any]]:
    """Every panel at its place: a heading for each row, its panels side by side below it."""
    placed: list[dict[str, Any]] = []
    top = 0
    for heading, height, row in ROWS:
        placed.append({"type": "row", "title": heading, "collapsed": False, "panels": [], "gridPos": _at(0, top, WIDTH, 1)})
        edges = [round(index * WIDTH / len(row)) for index in range(len(row) + 1)]
        for panel, left, right in zip(row, edges, edges[1:], strict=False):
            placed.append({**panel, "datasource": DATASOURCE, "gridPos": _at(left, top + 1, right - left, height)})
        top += 1 + height
    return [{"id": number, **panel} for number, panel in enumerate(placed, 1)]


def _at(x: int, y: int, w: int, h: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": w, "h": h}


def dashboard() -> dict[str, Any]:
    """The whole dashboard, as Grafana reads it."""
    return {
        "uid": "ortserve",
        "title": "ortserve",
        "description": "A model service at a glance. Each alert is explained in docs/RUNBOOK.md.",
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "timezone": "browser",
        "tags": ["ortserve"],
        "templating": {
            "list": [
                {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "refresh": 1},
                {
                    "name": "model",
                    "label": "Model",
                    "type": "query",
                    "datasource": DATASOURCE,
                    "query": {"query": "label_values(ortserve_model_info, model)", "refId": "model"},
                    "refresh": 2,
                    "includeAll": True,
                    "multi": True,
                    "allValue": ".*",
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "annotations": {
            "list": [
                {
                    "name": "Alerts",
                    "enable": True,
                    "iconColor": RED,
                    "datasource": DATASOURCE,
                    "expr": 'ALERTS{alertname=~"Ortserve.+",alertstate="firing"}',
                    "titleFormat": "{{alertname}}",
                    "step": "15s",
                }
            ]
        },
        "panels": panels(),
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=2))
