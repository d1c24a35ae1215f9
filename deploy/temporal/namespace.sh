#!/bin/sh
# Creates the namespace unless it exists, whatever its settings have become since.
# The connection comes from TEMPORAL_ADDRESS and TEMPORAL_NAMESPACE.
set -eu

until temporal operator cluster health; do sleep 1; done
temporal operator namespace describe --namespace "$TEMPORAL_NAMESPACE" >/dev/null 2>&1 \
    || temporal operator namespace create --namespace "$TEMPORAL_NAMESPACE" --retention 30d
# A new namespace takes some seconds to reach every part of the server.
until temporal workflow list --limit 1 >/dev/null 2>&1; do sleep 1; done
