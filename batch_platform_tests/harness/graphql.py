"""Queries of Dagster's GraphQL that several rooms ask."""

RUNS_OF_LOCATION = """
query ($location: String!) {runsOrError(filter: {tags: [{key: ".dagster/repository", value: $location}]}) {... on Runs {
  results {runId jobName status repositoryOrigin {repositoryLocationName repositoryName} hasReExecutePermission}
}}}"""
RETRY = """
mutation ($params: ReexecutionParams!) {launchRunReexecution(reexecutionParams: $params) {
  __typename
  ... on LaunchRunSuccess {run {runId}}
  ... on PythonError {message}
}}"""
