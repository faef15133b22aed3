{{- define "conclave.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The StatefulSet and its headless service: pod names hang on it, so it never changes. */}}
{{- define "conclave.coordinator" -}}{{ include "conclave.fullname" . }}-coordinator{{- end -}}

{{/* Its name beside others in one Prometheus: releases of two namespaces may bear the same. */}}
{{- define "conclave.cluster" -}}
{{- printf "%s.%s" .Release.Namespace (include "conclave.fullname" .) | trunc 63 | trimSuffix "-" | trimSuffix "." -}}
{{- end -}}

{{- define "conclave.secret" -}}
{{- default (printf "%s-tokens" (include "conclave.fullname" .)) .Values.auth.existingSecret -}}
{{- end -}}

{{- define "conclave.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "conclave.labels" -}}
{{ include "conclave.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "conclave.image" -}}
{{- $tag := default .Chart.AppVersion .Values.image.tag -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository $tag -}}
{{- end -}}
{{- end -}}

{{/* The one with pip, for models that are known by name. */}}
{{- define "conclave.fetchImage" -}}
{{- $repository := default (printf "%s-fetch" .Values.image.repository) .Values.image.fetch.repository -}}
{{- if .Values.image.fetch.digest -}}
{{- printf "%s@%s" $repository .Values.image.fetch.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default (default .Chart.AppVersion .Values.image.tag) .Values.image.fetch.tag) -}}
{{- end -}}
{{- end -}}

{{- define "conclave.coordinatorToml" -}}
data_dir = "/var/lib/conclave"
listen = "0.0.0.0:7400"
http_listen = "0.0.0.0:7410"
tokens_file = "/etc/conclave/tokens/tokens.jsonl"
quotas_file = "/etc/conclave/quotas/quotas.toml"
{{- include "conclave.toml" .Values.coordinator.settings | trim | nindent 0 }}
{{- with .Values.auth.jwt }}
{{- if .configMap }}
[jwt]
jwks_file = {{ printf "/etc/conclave/jwks/%s" .key | toJson }}
issuer = {{ .issuer | toJson }}
audience = {{ .audience | toJson }}
tenant_claim = {{ .tenantClaim | toJson }}
role_claim = {{ .roleClaim | toJson }}
{{- end }}
{{- end }}
{{- if .Values.tls.enabled }}
{{- include "conclave.tlsTable" . | nindent 0 }}
{{- end }}
{{- if .Values.traces.endpoint }}
{{- include "conclave.tracesTable" . | nindent 0 }}
{{- end }}
{{- end -}}

{{/* A pool's worker.toml. dict "root" . "pool" $pool */}}
{{- define "conclave.workerToml" -}}
{{- $root := .root -}}
coordinators = [{{ printf "%s.%s.svc.%s:%d" (include "conclave.fullname" $root) $root.Release.Namespace $root.Values.clusterDomain (int $root.Values.service.port) | quote }}]
http_listen = "0.0.0.0:7420"
token_file = "/etc/conclave/tokens/worker-token"
{{- include "conclave.workerSettings" .pool | trim | nindent 0 }}
{{- if $root.Values.tls.enabled }}
{{- include "conclave.tlsTable" $root | nindent 0 }}
{{- end }}
{{- if $root.Values.traces.endpoint }}
{{- include "conclave.tracesTable" $root | nindent 0 }}
{{- end }}
[[models]]
name = {{ .pool.model.name | toJson }}
{{- if not .pool.model.fetch.enabled }}
path = {{ printf "/models/%s" .pool.model.volume.path | toJson }}
{{- end }}
{{- end -}}

{{/* What a pool's workers run: with kernels for GPUs where the pool asks for one. dict "root" . "pool" $pool */}}
{{- define "conclave.workerImage" -}}
{{- $image := .root.Values.image -}}
{{- if not (include "conclave.gpus" .pool) -}}
{{- include "conclave.image" .root -}}
{{- else if $image.cuda.digest -}}
{{- printf "%s@%s" (default $image.repository $image.cuda.repository) $image.cuda.digest -}}
{{- else -}}
{{- $tag := default (printf "%s-cuda" (default .root.Chart.AppVersion $image.tag)) $image.cuda.tag -}}
{{- printf "%s:%s" (default $image.repository $image.cuda.repository) $tag -}}
{{- end -}}
{{- end -}}

{{/* How many devices of NVIDIA (whole, shared, or slices) one worker of a pool asks for; empty: none. */}}
{{- define "conclave.gpus" -}}
{{- $gpus := 0 -}}
{{- range $name, $count := .resources.limits -}}
{{- if hasPrefix "nvidia.com/" $name -}}
{{- $gpus = add $gpus (int (toString $count)) -}}
{{- end -}}
{{- end -}}
{{- if $gpus -}}{{- $gpus -}}{{- end -}}
{{- end -}}

{{/* The settings of a pool's workers: a GPU that is asked for is computed on. */}}
{{- define "conclave.workerSettings" -}}
{{- $device := ternary (dict "device" "cuda") dict (not (empty (include "conclave.gpus" .))) -}}
{{- include "conclave.toml" (mergeOverwrite $device (deepCopy (default dict .settings))) -}}
{{- end -}}

{{/* A pool's resources without its GPU: for what only fetches. */}}
{{- define "conclave.plainResources" -}}
{{- $plain := dict -}}
{{- range $kind, $quantities := .resources -}}
{{- $kept := dict -}}
{{- range $name, $quantity := $quantities -}}
{{- if not (hasPrefix "nvidia.com/" $name) -}}{{- $_ := set $kept $name $quantity -}}{{- end -}}
{{- end -}}
{{- $_ := set $plain $kind $kept -}}
{{- end -}}
{{- toYaml $plain -}}
{{- end -}}

{{/* The seconds of a time such as 1m; less than one counts none. */}}
{{- define "conclave.seconds" -}}
{{- $number := regexFind "^[0-9]+" . | int -}}
{{- $units := dict "ms" 0 "s" 1 "m" 60 "h" 3600 -}}
{{- mul $number (get $units (regexFind "[a-z]+$" .)) -}}
{{- end -}}

{{- define "conclave.account" -}}
{{- /* dict "root" . "part" "coordinator" */ -}}
{{- if .root.Values.serviceAccount.create -}}
{{- printf "%s-%s" (include "conclave.fullname" .root) .part -}}
{{- else -}}
{{- .root.Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* What coordinator number .index advertises. */}}
{{- define "conclave.address" -}}
{{- $name := include "conclave.coordinator" .root -}}
{{- printf "%s-%d.%s.%s.svc.%s:7400" $name (int .index) $name .root.Release.Namespace .root.Values.clusterDomain -}}
{{- end -}}

{{/* The service's name: what the coordinators' certificate bears, whichever of them is dialled. */}}
{{- define "conclave.serverName" -}}
{{- printf "%s.%s.svc.%s" (include "conclave.fullname" .) .Release.Namespace .Values.clusterDomain -}}
{{- end -}}

{{/* The Secret with a certificate. dict "root" . "part" "coordinator" */}}
{{- define "conclave.tlsSecret" -}}
{{- $tls := .root.Values.tls -}}
{{- if $tls.certManager.enabled -}}
{{- printf "%s-%s-tls" (include "conclave.fullname" .root) .part -}}
{{- else if eq .part "worker" -}}
{{- default $tls.existingSecret $tls.workerSecret -}}
{{- else -}}
{{- $tls.existingSecret -}}
{{- end -}}
{{- end -}}

{{/* The table of a coordinator's or a worker's settings; a table ends what stands outside of tables. */}}
{{- define "conclave.tlsTable" -}}
[tls]
cert_file = "/run/conclave/tls/tls.crt"
key_file = "/run/conclave/tls/tls.key"
ca_file = "/run/conclave/tls/ca.crt"
server_name = {{ include "conclave.serverName" . | quote }}
{{- end -}}

{{/* The table that says where traces go. */}}
{{- define "conclave.tracesTable" -}}
[traces]
endpoint = {{ .Values.traces.endpoint | toJson }}
sampling_ratio = {{ .Values.traces.samplingRatio }}
{{- if .Values.traces.headersSecret }}
headers_file = "/run/conclave/traces/headers"
{{- end }}
{{- if .Values.traces.caConfigMap }}
ca_file = "/run/conclave/traces-ca/ca.crt"
server_name = {{ .Values.traces.serverName | toJson }}
{{- end }}
{{- end -}}

{{/* What sending traces needs of files. */}}
{{- define "conclave.tracesMounts" -}}
{{- if .Values.traces.headersSecret }}
- { name: traces-headers, mountPath: /run/conclave/traces, readOnly: true }
{{- end }}
{{- if .Values.traces.caConfigMap }}
- { name: traces-ca, mountPath: /run/conclave/traces-ca, readOnly: true }
{{- end }}
{{- end -}}

{{- define "conclave.tracesVolumes" -}}
{{- with .Values.traces.headersSecret }}
- name: traces-headers
  secret:
    secretName: {{ . }}
    items:
      - { key: headers, path: headers }
    defaultMode: 0440
{{- end }}
{{- with .Values.traces.caConfigMap }}
- name: traces-ca
  configMap:
    name: {{ . }}
    items:
      - { key: ca.crt, path: ca.crt }
{{- end }}
{{- end -}}

{{/* What the command line needs to know. */}}
{{- define "conclave.tlsEnv" -}}
- { name: CONCLAVE_CA, value: /run/conclave/tls/ca.crt }
- { name: CONCLAVE_SERVER_NAME, value: {{ include "conclave.serverName" . }} }
{{- end -}}

{{/* Every coordinator's address as arguments, a YAML list. */}}
{{- define "conclave.addresses" -}}
{{- range $index := until (int .Values.coordinator.replicas) }}
- {{ include "conclave.address" (dict "root" $ "index" $index) }}
{{- end }}
{{- end -}}

{{- define "conclave.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "conclave.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* A map of settings as lines of TOML: JSON's texts, numbers and booleans are TOML's. */}}
{{- define "conclave.toml" -}}
{{- range $key, $value := . }}
{{ $key }} = {{ if kindIs "float64" $value }}{{ if eq $value (floor $value) }}{{ int64 $value }}{{ else }}{{ $value }}{{ end }}{{ else }}{{ $value | toJson }}{{ end }}
{{- end }}
{{- end -}}

{{/* A pool with what it leaves to the defaults. dict "root" . "pool" $pool */}}
{{- define "conclave.pool" -}}
{{- mergeOverwrite (deepCopy .root.Values.workerDefaults) (deepCopy .pool) | toYaml -}}
{{- end -}}

{{/* The pod of a job that calls the cluster once. dict "root" . "args" list "token" name "deadline" seconds */}}
{{- define "conclave.caller" -}}
{{- $root := .root -}}
metadata:
  labels:
    {{- include "conclave.selector" $root | nindent 4 }}
    app.kubernetes.io/component: caller
spec:
  restartPolicy: Never
  serviceAccountName: {{ include "conclave.account" (dict "root" $root "part" "coordinator") }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with $root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- include "conclave.podSecurity" $root | nindent 4 }}
  {{- /* Where coordinators may run, their jobs may. */ -}}
  {{- with $root.Values.coordinator.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $root.Values.coordinator.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: conclave
      image: {{ include "conclave.image" $root }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      command: [conclave]
      args:
        {{- toYaml .args | nindent 8 }}
      env:
        - name: CONCLAVE_ENDPOINT
          value: {{ printf "%s.%s.svc.%s:%d" (include "conclave.fullname" $root) $root.Release.Namespace $root.Values.clusterDomain (int $root.Values.service.port) }}
        {{- if $root.Values.tls.enabled }}
        {{- include "conclave.tlsEnv" $root | nindent 8 }}
        {{- end }}
      securityContext:
        {{- include "conclave.containerSecurity" $root | nindent 8 }}
      resources:
        {{- toYaml $root.Values.hooks.resources | nindent 8 }}
      volumeMounts:
        - { name: token, mountPath: /etc/conclave, readOnly: true }
        {{- if $root.Values.tls.enabled }}
        - { name: tls, mountPath: /run/conclave/tls, readOnly: true }
        {{- end }}
  volumes:
    - name: token
      secret:
        secretName: {{ include "conclave.secret" $root }}
        items:
          - { key: {{ .token }}, path: {{ .token }} }
        defaultMode: 0440
    {{- if $root.Values.tls.enabled }}
    - name: tls
      secret:
        secretName: {{ include "conclave.tlsSecret" (dict "root" $root "part" "coordinator") }}
        items:
          - { key: ca.crt, path: ca.crt }
        defaultMode: 0440
    {{- end }}
{{- end -}}

{{/* Egress rules. */}}
{{- define "conclave.dns" -}}
- ports:
    - { port: 53, protocol: UDP }
    - { port: 53, protocol: TCP }
{{- end -}}

{{- define "conclave.toCoordinators" -}}
- to:
    - podSelector:
        matchLabels:
          {{- include "conclave.selector" . | nindent 10 }}
          app.kubernetes.io/component: coordinator
  ports:
    - { port: 7400, protocol: TCP }
{{- end -}}
