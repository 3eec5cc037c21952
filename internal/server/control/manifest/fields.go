package manifest

import (
	"fmt"
	"reflect"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
)

// class says what becomes of a field.
type class int

const (
	unclassified class = iota
	converted          // its meaning is carried out
	ignored            // it means nothing on one host; the table says why
	refused            // an error: not supported
	checked            // only values that mean what Orlop does anyway are accepted
	emptyOnly          // refused, unless it is there and empty
)

// rule is a field's class, with the reason for a person.
type rule struct {
	class class
	why   string
	check func(reflect.Value) string // of checked: "" or what is wrong
}

// field is one field of a Kubernetes type, embedded structs flattened.
type field struct {
	index []int
	owner string // name of the struct type that declares it
	name  string // in JSON
	typ   reflect.Type
}

var fieldCache sync.Map // reflect.Type → map[string]field

func fieldsOf(t reflect.Type) map[string]field {
	if m, ok := fieldCache.Load(t); ok {
		return m.(map[string]field)
	}
	m := map[string]field{}
	addFields(t, nil, m)
	fieldCache.Store(t, m)
	return m
}

func addFields(t reflect.Type, index []int, m map[string]field) {
	for i := range t.NumField() {
		f := t.Field(i)
		at := append(append([]int(nil), index...), i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported():
		case f.Anonymous && name == "":
			addFields(f.Type, at, m)
		default:
			m[name] = field{at, t.Name(), name, f.Type}
		}
	}
}

// ruleOf returns the field's rule. A type that is not in the table (a field that has been
// refused hides it) is converted whole if allConverted says so.
func ruleOf(f field) rule {
	if r, ok := rules[f.owner+"."+f.name]; ok {
		return r
	}
	if allConverted[f.owner] {
		return rule{class: converted}
	}
	return rule{class: refused, why: fmt.Sprintf("%s is not known to this version of Orlop; leave it out", f.name)}
}

func later(what string) rule {
	return rule{class: refused, why: what + " is not supported yet; leave it out"}
}
func never(why string) rule { return rule{class: refused, why: why} }
func ignore(why string) rule {
	return rule{class: ignored, why: why}
}

// only accepts the given values.
func only(what string, values ...string) rule {
	return rule{class: checked, why: "only " + strings.Join(values, ", "), check: func(v reflect.Value) string {
		if v.Kind() == reflect.Pointer {
			v = v.Elem()
		}
		got := fmt.Sprint(v.Interface())
		for _, w := range values {
			if got == w {
				return ""
			}
		}
		return fmt.Sprintf("%s %s is not supported yet; supported: %s", what, got, strings.Join(values, ", "))
	}}
}

// empty accepts what is there but says nothing.
func empty(r rule) rule { return rule{class: emptyOnly, why: r.why} }

const (
	whyScheduling = "there is one host, so there is nothing to choose"
	whyServer     = "set by a Kubernetes API server; here it says nothing"
	whyAccount    = "there is no API server that a token would be for"
)

// allConverted are types of which every field is converted. The test of
// exhaustiveness pins their fields, so that a new one is noticed.
var allConverted = map[string]bool{
	"TypeMeta": true, "LocalObjectReference": true, "EnvVar": true, "ObjectFieldSelector": true,
	"ResourceFieldSelector": true, "ConfigMapKeySelector": true, "SecretKeySelector": true, "EnvFromSource": true,
	"ConfigMapEnvSource": true, "SecretEnvSource": true, "ContainerPort": true, "VolumeDevice": true,
	"ExecAction": true, "TCPSocketAction": true, "HTTPHeader": true, "SleepAction": true, "Probe": true,
	"ProbeHandler": true, "LifecycleHandler": true, "Lifecycle": true, "Capabilities": true, "SELinuxOptions": true,
	"SeccompProfile": true, "AppArmorProfile": true, "Sysctl": true, "HostAlias": true, "PodDNSConfig": true,
	"PodDNSConfigOption": true, "Volume": true, "HostPathVolumeSource": true, "ConfigMapProjection": true,
	"SecretProjection": true, "DownwardAPIProjection": true, "PersistentVolumeClaimVolumeSource": true,
	"ConfigMap": true, "Secret": true,
}

// rules is the table of docs/design/control-api.md. Keys are type.field of k8s.io/api/core/v1.
var rules = map[string]rule{
	// Objects
	"Pod.metadata": {class: converted}, "Pod.spec": {class: converted}, "Pod.status": ignore("what a server reports"),
	"PersistentVolumeClaim.metadata": {class: converted}, "PersistentVolumeClaim.spec": {class: converted},
	"PersistentVolumeClaim.status": ignore("what a server reports"),

	"ObjectMeta.name": {class: converted}, "ObjectMeta.namespace": {class: converted},
	"ObjectMeta.labels": {class: converted}, "ObjectMeta.annotations": {class: converted},
	"ObjectMeta.generateName":    empty(later("generateName")),
	"ObjectMeta.selfLink":        ignore(whyServer),
	"ObjectMeta.uid":             ignore(whyServer),
	"ObjectMeta.resourceVersion": ignore(whyServer), "ObjectMeta.generation": ignore(whyServer),
	"ObjectMeta.creationTimestamp": ignore(whyServer), "ObjectMeta.deletionTimestamp": ignore(whyServer),
	"ObjectMeta.deletionGracePeriodSeconds": ignore(whyServer), "ObjectMeta.managedFields": ignore(whyServer),
	"ObjectMeta.ownerReferences": ignore("nothing here owns objects"), "ObjectMeta.finalizers": ignore("no controller waits for a deletion"),

	// Pod
	"PodSpec.volumes": {class: converted}, "PodSpec.initContainers": {class: converted}, "PodSpec.containers": {class: converted},
	"PodSpec.ephemeralContainers":   empty(never("ephemeralContainers cannot be part of a new pod; use: orlop exec")),
	"PodSpec.restartPolicy":         {class: converted},
	"PodSpec.activeDeadlineSeconds": {class: converted}, "PodSpec.terminationGracePeriodSeconds": {class: converted},
	"PodSpec.dnsPolicy": {class: converted}, "PodSpec.dnsConfig": {class: converted},
	"PodSpec.hostNetwork": {class: converted}, "PodSpec.hostPID": {class: converted}, "PodSpec.hostIPC": {class: converted},
	"PodSpec.runtimeClassName":      {class: converted},
	"PodSpec.shareProcessNamespace": {class: converted}, "PodSpec.securityContext": {class: converted},
	"PodSpec.imagePullSecrets": {class: converted}, "PodSpec.hostname": {class: converted}, "PodSpec.subdomain": {class: converted},
	"PodSpec.hostAliases": {class: converted}, "PodSpec.resources": {class: converted},
	"PodSpec.nodeSelector": ignore(whyScheduling), "PodSpec.nodeName": ignore(whyScheduling), "PodSpec.affinity": ignore(whyScheduling),
	"PodSpec.schedulerName": ignore(whyScheduling), "PodSpec.tolerations": ignore(whyScheduling),
	"PodSpec.topologySpreadConstraints": ignore(whyScheduling), "PodSpec.priorityClassName": ignore(whyScheduling),
	"PodSpec.priority": ignore(whyScheduling), "PodSpec.preemptionPolicy": ignore(whyScheduling), "PodSpec.schedulingGroup": ignore(whyScheduling),
	"PodSpec.evictionResponders":           ignore("nothing evicts pods here"),
	"PodSpec.serviceAccountName":           ignore(whyAccount),
	"PodSpec.serviceAccount":               ignore(whyAccount),
	"PodSpec.automountServiceAccountToken": ignore(whyAccount),
	"PodSpec.enableServiceLinks":           ignore("there are no Services whose addresses would become variables"),
	"PodSpec.hostUsers":                    {class: converted},
	"PodSpec.setHostnameAsFQDN":            only("setHostnameAsFQDN", "false"),
	"PodSpec.os":                           {class: converted},
	"PodOS.name":                           only("operating system", "linux"),
	"PodSpec.readinessGates":               empty(later("readinessGates")),
	"PodSpec.overhead":                     empty(later("overhead")),
	"PodSpec.schedulingGates":              empty(never("schedulingGates would keep the pod from ever starting: nothing here removes them")),
	"PodSpec.resourceClaims":               empty(later("resourceClaims (dynamic resource allocation)")),
	"PodSpec.hostnameOverride":             never("hostnameOverride is not supported yet; use hostname"),

	"PodSecurityContext.seLinuxOptions": {class: converted}, "PodSecurityContext.runAsUser": {class: converted},
	"PodSecurityContext.runAsGroup": {class: converted}, "PodSecurityContext.runAsNonRoot": {class: converted},
	"PodSecurityContext.supplementalGroups": {class: converted}, "PodSecurityContext.supplementalGroupsPolicy": {class: converted},
	"PodSecurityContext.fsGroup": {class: converted}, "PodSecurityContext.fsGroupChangePolicy": {class: converted},
	"PodSecurityContext.sysctls": {class: converted}, "PodSecurityContext.seccompProfile": {class: converted},
	"PodSecurityContext.appArmorProfile":     {class: converted},
	"PodSecurityContext.windowsOptions":      never("windowsOptions are for Windows; this host runs Linux"),
	"PodSecurityContext.seLinuxChangePolicy": later("seLinuxChangePolicy"),

	// Containers
	"Container.name": {class: converted}, "Container.image": {class: converted}, "Container.command": {class: converted},
	"Container.args": {class: converted}, "Container.workingDir": {class: converted}, "Container.ports": {class: converted},
	"Container.envFrom": {class: converted}, "Container.env": {class: converted}, "Container.resources": {class: converted},
	"Container.restartPolicy": {class: converted}, "Container.volumeMounts": {class: converted}, "Container.volumeDevices": {class: converted},
	"Container.livenessProbe": {class: converted}, "Container.readinessProbe": {class: converted}, "Container.startupProbe": {class: converted},
	"Container.lifecycle": {class: converted}, "Container.terminationMessagePath": {class: converted},
	"Container.terminationMessagePolicy": {class: converted}, "Container.imagePullPolicy": {class: converted},
	"Container.securityContext": {class: converted}, "Container.stdin": {class: converted}, "Container.stdinOnce": {class: converted},
	"Container.tty":                {class: converted},
	"Container.resizePolicy":       ignore("resources of a running pod are not changed in place"),
	"Container.restartPolicyRules": empty(later("restartPolicyRules")),

	"SecurityContext.capabilities": {class: converted}, "SecurityContext.privileged": {class: converted},
	"SecurityContext.seLinuxOptions": {class: converted}, "SecurityContext.runAsUser": {class: converted},
	"SecurityContext.runAsGroup": {class: converted}, "SecurityContext.runAsNonRoot": {class: converted},
	"SecurityContext.readOnlyRootFilesystem": {class: converted}, "SecurityContext.allowPrivilegeEscalation": {class: converted},
	"SecurityContext.procMount": {class: converted}, "SecurityContext.seccompProfile": {class: converted},
	"SecurityContext.appArmorProfile": {class: converted},
	"SecurityContext.windowsOptions":  never("windowsOptions are for Windows; this host runs Linux"),

	"EnvVarSource.fieldRef": {class: converted}, "EnvVarSource.resourceFieldRef": {class: converted},
	"EnvVarSource.configMapKeyRef": {class: converted}, "EnvVarSource.secretKeyRef": {class: converted},
	"EnvVarSource.fileKeyRef": later("fileKeyRef"),

	"ResourceRequirements.limits": {class: converted}, "ResourceRequirements.requests": {class: converted},
	"ResourceRequirements.claims": empty(later("claims (dynamic resource allocation)")),

	"VolumeMount.name": {class: converted}, "VolumeMount.readOnly": {class: converted}, "VolumeMount.recursiveReadOnly": {class: converted},
	"VolumeMount.mountPath": {class: converted}, "VolumeMount.subPath": {class: converted},
	"VolumeMount.mountPropagation": {class: converted}, "VolumeMount.subPathExpr": {class: converted},
	"VolumeMount.bindMountOptions": empty(later("bindMountOptions")),

	"HTTPGetAction.path": {class: converted}, "HTTPGetAction.port": {class: converted}, "HTTPGetAction.host": {class: converted},
	"HTTPGetAction.scheme": {class: converted}, "HTTPGetAction.httpHeaders": {class: converted},
	"HTTPGetAction.protocol": only("protocol", string(corev1.HTTPProtocolHTTP1)),
	"GRPCAction.port":        {class: converted}, "GRPCAction.service": {class: converted},
	"GRPCAction.mode": only("mode", string(corev1.GRPCProbeModePlaintext)),

	// Volumes
	"VolumeSource.hostPath": {class: converted}, "VolumeSource.emptyDir": {class: converted}, "VolumeSource.secret": {class: converted},
	"VolumeSource.persistentVolumeClaim": {class: converted}, "VolumeSource.downwardAPI": {class: converted},
	"VolumeSource.configMap": {class: converted}, "VolumeSource.projected": {class: converted},
	"VolumeSource.gcePersistentDisk": noVolume("gcePersistentDisk"), "VolumeSource.awsElasticBlockStore": noVolume("awsElasticBlockStore"),
	"VolumeSource.gitRepo": noVolume("gitRepo"), "VolumeSource.nfs": noVolume("nfs"), "VolumeSource.iscsi": noVolume("iscsi"),
	"VolumeSource.glusterfs": noVolume("glusterfs"), "VolumeSource.rbd": noVolume("rbd"), "VolumeSource.flexVolume": noVolume("flexVolume"),
	"VolumeSource.cinder": noVolume("cinder"), "VolumeSource.cephfs": noVolume("cephfs"), "VolumeSource.flocker": noVolume("flocker"),
	"VolumeSource.fc": noVolume("fc"), "VolumeSource.azureFile": noVolume("azureFile"), "VolumeSource.vsphereVolume": noVolume("vsphereVolume"),
	"VolumeSource.quobyte": noVolume("quobyte"), "VolumeSource.azureDisk": noVolume("azureDisk"),
	"VolumeSource.photonPersistentDisk": noVolume("photonPersistentDisk"), "VolumeSource.portworxVolume": noVolume("portworxVolume"),
	"VolumeSource.scaleIO": noVolume("scaleIO"), "VolumeSource.storageos": noVolume("storageos"), "VolumeSource.csi": noVolume("csi"),
	"VolumeSource.ephemeral": noVolume("ephemeral"), "VolumeSource.image": noVolume("image"),

	"EmptyDirVolumeSource.medium": {class: converted}, "EmptyDirVolumeSource.sizeLimit": {class: converted},
	"EmptyDirVolumeSource.mode":         later("mode of an emptyDir"),
	"SecretVolumeSource.secretName":     {class: converted},
	"SecretVolumeSource.items":          {class: converted},
	"SecretVolumeSource.defaultMode":    {class: converted},
	"SecretVolumeSource.optional":       {class: converted},
	"SecretVolumeSource.defaultUser":    never("defaultUser is not supported yet; use fsGroup"),
	"ConfigMapVolumeSource.items":       {class: converted},
	"ConfigMapVolumeSource.optional":    {class: converted},
	"ConfigMapVolumeSource.defaultMode": {class: converted},
	"ConfigMapVolumeSource.defaultUser": never("defaultUser is not supported yet; use fsGroup"),
	"KeyToPath.key":                     {class: converted}, "KeyToPath.path": {class: converted}, "KeyToPath.mode": {class: converted},
	"KeyToPath.user":                never("user is not supported yet; use fsGroup"),
	"DownwardAPIVolumeSource.items": {class: converted}, "DownwardAPIVolumeSource.defaultMode": {class: converted},
	"DownwardAPIVolumeSource.defaultUser": never("defaultUser is not supported yet; use fsGroup"),
	"DownwardAPIVolumeFile.path":          {class: converted}, "DownwardAPIVolumeFile.fieldRef": {class: converted},
	"DownwardAPIVolumeFile.resourceFieldRef": {class: converted}, "DownwardAPIVolumeFile.mode": {class: converted},
	"DownwardAPIVolumeFile.user":    never("user is not supported yet; use fsGroup"),
	"ProjectedVolumeSource.sources": {class: converted}, "ProjectedVolumeSource.defaultMode": {class: converted},
	"ProjectedVolumeSource.defaultUser": never("defaultUser is not supported yet; use fsGroup"),
	"VolumeProjection.secret":           {class: converted}, "VolumeProjection.downwardAPI": {class: converted}, "VolumeProjection.configMap": {class: converted},
	"VolumeProjection.serviceAccountToken": never("a serviceAccountToken needs a Kubernetes API server, and there is none; leave it out"),
	"VolumeProjection.clusterTrustBundle":  later("clusterTrustBundle"),
	"VolumeProjection.podCertificate":      later("podCertificate"),

	// Claims
	"PersistentVolumeClaimSpec.accessModes": {class: converted}, "PersistentVolumeClaimSpec.resources": {class: converted},
	"PersistentVolumeClaimSpec.storageClassName": {class: converted}, "PersistentVolumeClaimSpec.volumeMode": {class: converted},
	"PersistentVolumeClaimSpec.selector":                  never("a selector chooses among volumes that somebody made; Orlop makes the claim's volume itself; leave it out"),
	"PersistentVolumeClaimSpec.volumeName":                never("volumeName chooses a volume that somebody made; Orlop makes the claim's volume itself; leave it out"),
	"PersistentVolumeClaimSpec.dataSource":                later("dataSource (snapshots and clones)"),
	"PersistentVolumeClaimSpec.dataSourceRef":             later("dataSourceRef (snapshots and clones)"),
	"PersistentVolumeClaimSpec.volumeAttributesClassName": later("volumeAttributesClassName"),
	"VolumeResourceRequirements.requests":                 {class: converted},
	"VolumeResourceRequirements.limits":                   empty(never("limits mean nothing for a claim: its volume has exactly the size that is requested; leave them out")),
}

// volumeKinds are the sources that are supported, for messages.
const volumeKinds = "emptyDir, hostPath, configMap, secret, downwardAPI, projected, persistentVolumeClaim"

func noVolume(name string) rule {
	return rule{class: refused, why: fmt.Sprintf("%s volumes are not supported yet; supported: %s", name, volumeKinds)}
}
