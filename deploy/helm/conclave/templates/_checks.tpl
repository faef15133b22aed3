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
{{- with .Values.coordinator -}}
{{- /* preStop hands leadership over first, for 10 s at most. */ -}}
{{- if ge (add 10 (include "conclave.seconds" .drain | int)) (int64 .terminationGracePeriodSeconds) -}}
{{- fail (printf "coordinator: terminationGracePeriodSeconds (%d) must be more than 10 s and drain (%s)" (int .terminationGracePeriodSeconds) .drain) -}}
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
{{- range tuple "hpa" "keda" -}}
{{- $scaler := get $pool.autoscaling . -}}
{{- if and $scaler.enabled (lt (int $scaler.maxReplicas) (int $scaler.minReplicas)) -}}
{{- fail (printf "workerPools.%s.autoscaling.%s: maxReplicas is below minReplicas" $name .) -}}
{{- end -}}
{{- end -}}
{{- if ge (include "conclave.seconds" $pool.drain | int) (int $pool.terminationGracePeriodSeconds) -}}
{{- fail (printf "workerPools.%s: drain (%s) must be shorter than terminationGracePeriodSeconds (%d): what runs would be killed before it is given back" $name $pool.drain (int $pool.terminationGracePeriodSeconds)) -}}
{{- end -}}
{{- include "conclave.gpuChecks" (dict "root" $ "name" $name "pool" $pool) -}}
{{- if and (not $pool.model.fetch.enabled) (or (not $pool.model.volume.existingClaim) (not $pool.model.volume.path)) -}}
{{- fail (printf "workerPools.%s.model: fetch.enabled, or volume.existingClaim and volume.path" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What a pool asks of GPUs, and what its workers compute on. dict "root" . "name" $name "pool" $pool */}}
{{- define "conclave.gpuChecks" -}}
{{- $where := printf "workerPools.%s" .name -}}
{{- $gpus := include "conclave.gpus" .pool | int -}}
{{- $device := toString (default "" (get (default dict .pool.settings) "device")) -}}
{{- range $resource, $_ := .pool.resources.requests -}}
{{- if and (hasPrefix "nvidia.com/" $resource) (not $gpus) -}}
{{- fail (printf "%s.resources: %s stands in limits; Kubernetes takes the request from there" $where $resource) -}}
{{- end -}}
{{- end -}}
{{- if gt $gpus 1 -}}
{{- fail (printf "%s.resources: a worker computes on one GPU, and %d are asked for: take 1, and as many replicas" $where $gpus) -}}
{{- end -}}
{{- if and $gpus (eq $device "cpu") -}}
{{- fail (printf "%s: it asks for a GPU, and settings.device is cpu: take one of the two out" $where) -}}
{{- end -}}
{{- if and (not $gpus) (hasPrefix "cuda" $device) -}}
{{- fail (printf "%s: settings.device is %s, and no GPU is asked for: add nvidia.com/gpu: 1 to resources.limits" $where $device) -}}
{{- end -}}
{{- with .root.Values.image -}}
{{- if and $gpus .digest (not .cuda.digest) (not .cuda.tag) -}}
{{- fail (printf "%s asks for a GPU, and image.digest is that of the image without CUDA: give image.cuda.digest (or image.cuda.tag)" $where) -}}
{{- end -}}
{{- if and $gpus .digest (eq .digest .cuda.digest) -}}
{{- fail (printf "%s asks for a GPU: image.cuda.digest is that of the image without CUDA" $where) -}}
{{- end -}}
{{- end -}}
{{- end -}}
