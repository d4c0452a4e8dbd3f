#!/bin/sh
# Azure: two roles, and who has them on the output's container under which condition. On the log's
# container the publisher has the reader's role. PUBLISHER_ID, GC_ID and READER_ID are object ids.
set -eu
scope=/subscriptions/SUBSCRIPTION_ID/resourceGroups/RESOURCE_GROUP/providers/Microsoft.Storage
scope=$scope/storageAccounts/STORAGE_ACCOUNT/blobServices/default/containers/OUTPUT_CONTAINER
blobs=Microsoft.Storage/storageAccounts/blobServices/containers/blobs
path="@Resource[$blobs:path]"
prefix="@Request[$blobs:prefix]"

# Names and contents below the output, and nothing else of the container.
reads="((!(ActionMatches{'$blobs/read'} AND SubOperationMatches{'Blob.List'})
    OR $prefix StringLike 'nightly/*')
    AND (!(ActionMatches{'$blobs/read'} AND NOT SubOperationMatches{'Blob.List'})
    OR $path StringLike 'nightly/*'))"

publishes="$reads
    AND (!(ActionMatches{'$blobs/write'}) OR $path StringLike 'nightly/*')
    AND (!(ActionMatches{'$blobs/delete'}) OR $path StringLike 'nightly/_checkpoints/*'
    OR $path StringLike 'nightly/_probe/*'
    OR $path StringEquals 'nightly/current.json')"

collects="$reads
    AND (!(ActionMatches{'$blobs/write'}) OR $path StringLike 'nightly/_log/*'
    OR $path StringLike 'nightly/manifests/*' OR $path StringLike 'nightly/tables/*/_delta_log/*'
    OR $path StringEquals 'nightly/current.json')
    AND (!(ActionMatches{'$blobs/delete'}) OR $path StringLike 'nightly/_log/*.snapshot.json'
    OR $path StringLike 'nightly/_checkpoints/*' OR $path StringLike 'nightly/_failed/*'
    OR $path StringLike 'nightly/_probe/*' OR $path StringLike 'nightly/runs/*'
    OR $path StringLike 'nightly/tables/*/logical_date=*/run_id=*/*'
    OR $path StringEquals 'nightly/current.json')"

assign() {
    az role assignment create --assignee-object-id "$1" --assignee-principal-type ServicePrincipal \
        --role "$2" --scope "$scope" --condition-version 2.0 --condition "$3"
}

az role definition create --role-definition @azure-role-publisher.json
az role definition create --role-definition @azure-role-reader.json
assign PUBLISHER_ID "Tidemill publisher" "$publishes"
assign GC_ID "Tidemill publisher" "$collects"
assign READER_ID "Tidemill reader" "$reads"
