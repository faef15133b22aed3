{{/* What a schema cannot say. */}}
{{- define "conclave.checks" -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.host) -}}
{{- fail "ingress.host is needed" -}}
{{- end -}}
{{- if and .Values.auth.jwt.configMap (not .Values.auth.jwt.issuer) -}}
{{- fail "auth.jwt.issuer is needed" -}}
{{- end -}}
{{- with .Values.traces -}}
{{- if and (hasPrefix "https://" .endpoint) (not .caConfigMap) -}}
{{- fail "traces.caConfigMap is needed: the endpoint is https://" -}}
{{- end -}}
{{- if and .caConfigMap (not (hasPrefix "https://" .endpoint)) -}}
{{- fail "traces.caConfigMap goes with an endpoint of https://" -}}
{{- end -}}
{{- end -}}
{{- with .Values.tls -}}
{{- if and .enabled .certManager.enabled .existingSecret -}}
{{- fail "tls: existingSecret or certManager.enabled, not both" -}}
{{- end -}}
{{- if and .enabled (not .certManager.enabled) (not .existingSecret) -}}
{{- fail "tls: existingSecret, or certManager.enabled" -}}
{{- end -}}
{{- if and .certManager.enabled (not .certManager.issuerRef.name) -}}
{{- fail "tls.certManager.issuerRef.name is needed" -}}
{{- end -}}
{{- end -}}
{{- range $name, $pool := .Values.workerPools -}}
{{- $pool = include "conclave.pool" (dict "root" $ "pool" $pool) | fromYaml -}}
{{- if and $pool.autoscaling.hpa.enabled $pool.autoscaling.keda.enabled -}}
{{- fail (printf "workerPools.%s.autoscaling: hpa or keda, not both" $name) -}}
{{- end -}}
{{- if and $pool.autoscaling.keda.enabled (not $pool.autoscaling.keda.serverAddress) -}}
{{- fail (printf "workerPools.%s.autoscaling.keda.serverAddress is needed" $name) -}}
{{- end -}}
{{- if and (not $pool.model.fetch.enabled) (or (not $pool.model.volume.existingClaim) (not $pool.model.volume.path)) -}}
{{- fail (printf "workerPools.%s.model: fetch.enabled, or volume.existingClaim and volume.path" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
