{{- define "weightfs.labels" -}}
{{ include "weightfs.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "weightfs.selector" -}}
app.kubernetes.io/name: weightfs
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* Other pods than those of the DaemonSet. */}}
{{- define "weightfs.controllerSelector" -}}
app.kubernetes.io/name: weightfs-controller
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* Refuses what could not be meant, before anything is made of it. */}}
{{- define "weightfs.check" -}}
{{- if not (has .Values.plane (list "pod" "host")) }}
{{- fail (printf "plane: %q is neither pod nor host" .Values.plane) }}
{{- end }}
{{- if and .Values.csiDriver.tokenRequests (not .Values.csiDriver.requiresRepublish) }}
{{- fail "csiDriver.tokenRequests needs csiDriver.requiresRepublish: without it no token is renewed, and reads fail when the first one ends" }}
{{- end }}
{{- if and .Values.storageClasses (not .Values.controller.enabled) }}
{{- fail "storageClasses needs controller.enabled: nobody makes the volumes of their claims otherwise" }}
{{- end }}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.proxy.enabled) }}
{{- fail "metrics.serviceMonitor needs metrics.proxy: the page itself is shown on the node's loopback alone" }}
{{- end }}
{{- end }}
