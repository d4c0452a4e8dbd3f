"""Holds OpenLineage events against the classes that OpenLineage makes from its own schemas.

usage: open_lineage.py EVENTS.ndjson
"""
import json
import sys

from openlineage.client import facet_v2
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState

FACETS = {
    "processing_engine": facet_v2.processing_engine_run.ProcessingEngineRunFacet,
    "nominalTime": facet_v2.nominal_time_run.NominalTimeRunFacet,
    "errorMessage": facet_v2.error_message_run.ErrorMessageRunFacet,
    "jobType": facet_v2.job_type_job.JobTypeJobFacet,
    "version": facet_v2.dataset_version_dataset.DatasetVersionDatasetFacet,
    "inputStatistics": facet_v2.input_statistics_input_dataset.InputStatisticsInputDatasetFacet,
    "outputStatistics": facet_v2.output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet,
}


def facets(written):
    made = {}
    for name, facet in (written or {}).items():
        fields = {key: value for key, value in facet.items() if not key.startswith("_")}
        made[name] = FACETS[name](**fields, producer=facet["_producer"])
        assert made[name]._schemaURL == facet["_schemaURL"], (name, facet["_schemaURL"])
    return made


def dataset(kind, written):
    more = {key: facets(written.get(key)) for key in ("facets", "inputFacets", "outputFacets") if key in written}
    return kind(namespace=written["namespace"], name=written["name"], **more)


events = [json.loads(line) for line in open(sys.argv[1])]
terminal = {}
for event in events:
    assert set(event) == {"eventType", "eventTime", "producer", "schemaURL", "run", "job", "inputs", "outputs"}
    made = RunEvent(
        eventType=RunState(event["eventType"]),
        eventTime=event["eventTime"],
        producer=event["producer"],
        run=Run(runId=event["run"]["runId"], facets=facets(event["run"]["facets"])),
        job=Job(namespace=event["job"]["namespace"], name=event["job"]["name"], facets=facets(event["job"]["facets"])),
        inputs=[dataset(InputDataset, each) for each in event["inputs"]],
        outputs=[dataset(OutputDataset, each) for each in event["outputs"]],
    )
    assert made.schemaURL == event["schemaURL"], event["schemaURL"]
    terminal.setdefault(event["run"]["runId"], []).append(event["eventType"])
for run, kinds in terminal.items():
    assert len(kinds) == 2 and kinds[0] == "START" and kinds[1] in ("COMPLETE", "FAIL"), (run, kinds)
print(f"{len(events)} events of {len(terminal)} runs are what OpenLineage expects")
