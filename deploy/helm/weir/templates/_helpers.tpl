{{- define "weir.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "weir.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "weir.name" . -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* Arguments: root, component (server or gateway). */}}
{{- define "weir.selector" -}}
app.kubernetes.io/name: {{ include "weir.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "weir.labels" -}}
{{ include "weir.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "weir.serviceAccount" -}}
{{- ternary (default (include "weir.fullname" .) .Values.serviceAccount.name) (default "default" .Values.serviceAccount.name) .Values.serviceAccount.create -}}
{{- end }}

{{- define "weir.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default (ternary (printf "%s-cuda" .Chart.AppVersion) .Chart.AppVersion (gt (int .Values.gpu.count) 0)) .Values.image.tag }}
{{- end -}}
{{- end }}

{{/* What "restricted" of the pod security standards asks for, and a read-only root. */}}
{{- define "weir.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "weir.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* weir.yaml: what the chart knows, then the values' own settings. */}}
{{- define "weir.config" -}}
{{- $own := dict "model" .Values.model.path "grpc" (printf "0.0.0.0:%d" (int .Values.ports.grpc)) "metrics" (printf "0.0.0.0:%d" (int .Values.ports.metrics)) "drain-time" (printf "%ds" (int .Values.drainSeconds)) -}}
{{- $_ := set $own "http" (ternary (printf "0.0.0.0:%d" (int .Values.ports.http)) "" .Values.http.enabled) -}}
{{- $_ := set $own "device" (ternary "cuda" "cpu" (gt (int .Values.gpu.count) 0)) -}}
{{- if .Values.apiKeys.existingSecret }}{{ $_ := set $own "api-keys" (printf "/etc/weir/keys/%s" .Values.apiKeys.key) }}{{ end -}}
{{- range $door := list "grpc" "http" -}}
{{- $tls := index $.Values.tls $door -}}
{{- if $tls.existingSecret -}}
{{- $_ := set $own (printf "%s-tls-cert" $door) (printf "/etc/weir/tls-%s/tls.crt" $door) -}}
{{- $_ := set $own (printf "%s-tls-key" $door) (printf "/etc/weir/tls-%s/tls.key" $door) -}}
{{- if $tls.clientCA }}{{ $_ := set $own (printf "%s-client-ca" $door) (printf "/etc/weir/tls-%s/ca.crt" $door) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- range $name, $_ := .Values.config -}}
{{- if hasKey $own $name }}{{ fail (printf "config.%s is set by the chart: use the value made for it (model, ports, http, gpu, drainSeconds, apiKeys, tls)" $name) }}{{ end -}}
{{- end -}}
{{- range $name, $value := merge $own .Values.config -}}
{{ $name }}: {{ toJson $value }}
{{ end }}
{{- end }}

{{/* Probes of a server. Arguments: root. */}}
{{- define "weir.probes" -}}
{{- $p := .Values.probes -}}
{{- if and (eq $p.type "grpc") .Values.tls.grpc.existingSecret }}{{ fail "probes.type: the kubelet's gRPC probe speaks no TLS; use http or exec" }}{{ end -}}
{{- if and (eq $p.type "http") .Values.tls.http.clientCA }}{{ fail "probes.type: the kubelet shows no client certificate; use exec" }}{{ end -}}
{{- if and (eq $p.type "http") (not .Values.http.enabled) }}{{ fail "probes.type http needs http.enabled" }}{{ end -}}
startupProbe:
  {{- include "weir.probe" (dict "root" . "path" "/ready") | nindent 2 }}
  failureThreshold: {{ $p.startupFailures }}
readinessProbe:
  {{- include "weir.probe" (dict "root" . "path" "/ready") | nindent 2 }}
  failureThreshold: 1
livenessProbe:
  {{- include "weir.probe" (dict "root" . "path" "/health") | nindent 2 }}
  failureThreshold: {{ $p.livenessFailures }}
{{- end }}

{{- define "weir.probe" -}}
{{- $v := .root.Values -}}
{{- if eq $v.probes.type "grpc" -}}
grpc: {port: {{ $v.ports.grpc }}}
{{- else if eq $v.probes.type "http" -}}
httpGet: {path: {{ .path }}, port: http, scheme: {{ ternary "HTTPS" "HTTP" (ne $v.tls.http.existingSecret "") }}}
{{- else -}}
exec:
  command:
    - /opt/weir/bin/weir
    - health
    - --server=localhost:{{ $v.ports.grpc }}
    {{- if $v.tls.grpc.existingSecret }}
    - --tls-ca=/etc/weir/tls-grpc/ca.crt
    {{- with $v.tls.grpc.name }}
    - --tls-name={{ . }}
    {{- end }}
    {{- if $v.tls.grpc.clientCA }}
    - --tls-cert=/etc/weir/tls-grpc/tls.crt
    - --tls-key=/etc/weir/tls-grpc/tls.key
    {{- end }}
    {{- end }}
{{- end }}
periodSeconds: {{ $v.probes.periodSeconds }}
timeoutSeconds: {{ $v.probes.timeoutSeconds }}
{{- end }}

{{/* The addresses that a gateway calls. */}}
{{- define "weir.backends" -}}
{{- if .Values.gateway.backends -}}
{{- join "," .Values.gateway.backends -}}
{{- else if eq .Values.kind "StatefulSet" -}}
{{- $name := include "weir.fullname" . -}}
{{- $count := ternary .Values.autoscaling.maxReplicas .Values.replicas .Values.autoscaling.enabled -}}
{{- $all := list -}}
{{- range $i := until (int $count) -}}
{{- $all = append $all (printf "%s-%d.%s-headless:%d" $name $i $name (int $.Values.ports.grpc)) -}}
{{- end -}}
{{- join "," $all -}}
{{- else -}}
{{- printf "%s:%d" (include "weir.fullname" .) (int .Values.ports.grpc) -}}
{{- end -}}
{{- end }}
