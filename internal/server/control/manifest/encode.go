package manifest

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/orlop-io/orlop/internal/pod"
)

// EncodePod returns the pod as a Kubernetes object, defaults written out. Decoding it
// gives the same specification. Fields that were ignored are not in it.
func EncodePod(s *pod.Spec) *corev1.Pod {
	p := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: KindPod},
		ObjectMeta: metav1.ObjectMeta{Name: s.Name, Namespace: s.Namespace, Labels: s.Labels, Annotations: s.Annotations},
	}
	o := &p.Spec
	o.RestartPolicy = corev1.RestartPolicy(s.RestartPolicy)
	o.TerminationGracePeriodSeconds = seconds(s.TerminationGrace)
	if s.ActiveDeadline > 0 {
		o.ActiveDeadlineSeconds = seconds(s.ActiveDeadline)
	}
	o.Hostname, o.Subdomain = s.Hostname, s.Subdomain
	for _, a := range s.HostAlias {
		o.HostAliases = append(o.HostAliases, corev1.HostAlias{IP: a.IP.String(), Hostnames: a.Names})
	}
	o.DNSPolicy = corev1.DNSPolicy(s.DNSPolicy)
	if d := s.DNS; len(d.Servers)+len(d.Searches)+len(d.Options) > 0 {
		c := &corev1.PodDNSConfig{Searches: d.Searches}
		for _, a := range d.Servers {
			c.Nameservers = append(c.Nameservers, a.String())
		}
		for _, opt := range d.Options {
			name, value, has := strings.Cut(opt, ":")
			one := corev1.PodDNSConfigOption{Name: name}
			if has {
				one.Value = &value
			}
			c.Options = append(c.Options, one)
		}
		o.DNSConfig = c
	}
	for _, n := range s.ImagePulls {
		o.ImagePullSecrets = append(o.ImagePullSecrets, corev1.LocalObjectReference{Name: n})
	}
	o.HostNetwork, o.HostPID, o.HostIPC = s.HostNetwork, s.HostPID, s.HostIPC
	o.ShareProcessNamespace = yes(s.SharePID)
	if s.Handler != "" {
		o.RuntimeClassName = &s.Handler
	}
	if s.OwnUsers || s.Users != nil {
		o.HostUsers = new(bool)
	}
	o.SecurityContext = encodePodSecurity(&s.Security)
	if r := encodeResources(s.Resources); r.Limits != nil || r.Requests != nil {
		o.Resources = &r
	}
	signals := false
	for i := range s.Init {
		o.InitContainers = append(o.InitContainers, encodeContainer(&s.Init[i]))
		signals = signals || s.Init[i].StopSignal != ""
	}
	for i := range s.Containers {
		o.Containers = append(o.Containers, encodeContainer(&s.Containers[i]))
		signals = signals || s.Containers[i].StopSignal != ""
	}
	if signals {
		o.OS = &corev1.PodOS{Name: corev1.Linux}
	}
	for i := range s.Volumes {
		o.Volumes = append(o.Volumes, encodeVolume(&s.Volumes[i]))
	}
	return p
}

func seconds(d time.Duration) *int64 {
	n := int64(d / time.Second)
	return &n
}

func yes(b bool) *bool {
	if !b {
		return nil
	}
	return &b
}

func text[T ~string](s string) *T {
	if s == "" {
		return nil
	}
	v := T(s)
	return &v
}

func encodePodSecurity(s *pod.PodSecurity) *corev1.PodSecurityContext {
	o := &corev1.PodSecurityContext{
		RunAsUser: s.RunAsUser, RunAsGroup: s.RunAsGroup, RunAsNonRoot: s.RunAsNonRoot,
		SupplementalGroups: s.Groups, SupplementalGroupsPolicy: text[corev1.SupplementalGroupsPolicy](s.GroupsPolicy),
		FSGroup: s.FSGroup, FSGroupChangePolicy: text[corev1.PodFSGroupChangePolicy](s.FSGroupPolicy),
		SeccompProfile: encodeSeccomp(s.Seccomp), AppArmorProfile: encodeAppArmor(s.AppArmor), SELinuxOptions: encodeSELinux(s.SELinuxOptions),
	}
	for _, y := range s.Sysctls {
		o.Sysctls = append(o.Sysctls, corev1.Sysctl{Name: y.Name, Value: y.Value})
	}
	return o
}

func encodeSeccomp(p *pod.SecurityProfile) *corev1.SeccompProfile {
	if p == nil {
		return nil
	}
	return &corev1.SeccompProfile{Type: corev1.SeccompProfileType(p.Type), LocalhostProfile: text[string](p.Path)}
}

func encodeAppArmor(p *pod.SecurityProfile) *corev1.AppArmorProfile {
	if p == nil {
		return nil
	}
	return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileType(p.Type), LocalhostProfile: text[string](p.Path)}
}

func encodeSELinux(s *pod.SELinux) *corev1.SELinuxOptions {
	if s == nil {
		return nil
	}
	return &corev1.SELinuxOptions{User: s.User, Role: s.Role, Type: s.Type, Level: s.Level}
}

func encodeContainer(c *pod.Container) corev1.Container {
	o := corev1.Container{
		Name: c.Name, Image: c.Image, ImagePullPolicy: corev1.PullPolicy(c.PullPolicy),
		Command: c.Command, Args: c.Args, WorkingDir: c.WorkingDir,
		Resources: encodeResources(c.Resources), RestartPolicy: text[corev1.ContainerRestartPolicy](string(c.Restart)),
		StartupProbe: encodeProbe(c.Startup), ReadinessProbe: encodeProbe(c.Readiness), LivenessProbe: encodeProbe(c.Liveness),
		Stdin: c.Stdin, StdinOnce: c.StdinOnce, TTY: c.TTY,
		TerminationMessagePath: c.TerminationMessagePath, TerminationMessagePolicy: corev1.TerminationMessagePolicy(c.TerminationMessagePolicy),
		SecurityContext: encodeSecurity(&c.Security),
	}
	for _, e := range c.Env {
		o.Env = append(o.Env, encodeEnv(e))
	}
	for _, e := range c.EnvFrom {
		one := corev1.EnvFromSource{Prefix: e.Prefix}
		if e.ConfigMap != "" {
			one.ConfigMapRef = &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: e.ConfigMap}, Optional: yes(e.Optional)}
		}
		if e.Secret != "" {
			one.SecretRef = &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: e.Secret}, Optional: yes(e.Optional)}
		}
		o.EnvFrom = append(o.EnvFrom, one)
	}
	for _, p := range c.Ports {
		one := corev1.ContainerPort{Name: p.Name, ContainerPort: int32(p.Port), HostPort: int32(p.HostPort), Protocol: corev1.Protocol(p.Protocol)}
		if p.HostIP.IsValid() {
			one.HostIP = p.HostIP.String()
		}
		o.Ports = append(o.Ports, one)
	}
	for _, m := range c.Mounts {
		o.VolumeMounts = append(o.VolumeMounts, corev1.VolumeMount{
			Name: m.Volume, MountPath: m.Path, SubPath: m.SubPath, SubPathExpr: m.SubPathExpr, ReadOnly: m.ReadOnly,
			RecursiveReadOnly: text[corev1.RecursiveReadOnlyMode](m.RecursiveReadOnly),
			MountPropagation:  text[corev1.MountPropagationMode](m.Propagation),
		})
	}
	for _, v := range c.Devices {
		o.VolumeDevices = append(o.VolumeDevices, corev1.VolumeDevice{Name: v.Volume, DevicePath: v.Path})
	}
	if c.PostStart != nil || c.PreStop != nil || c.StopSignal != "" {
		o.Lifecycle = &corev1.Lifecycle{PostStart: encodeHook(c.PostStart), PreStop: encodeHook(c.PreStop), StopSignal: text[corev1.Signal](c.StopSignal)}
	}
	return o
}

func encodeEnv(e pod.EnvVar) corev1.EnvVar {
	o := corev1.EnvVar{Name: e.Name, Value: e.Value}
	var from corev1.EnvVarSource
	switch {
	case e.Field != "":
		from.FieldRef = &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: e.Field}
	case e.Resource != nil:
		from.ResourceFieldRef = encodeResourceRef(e.Resource)
	case e.ConfigMap != nil:
		from.ConfigMapKeyRef = &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: e.ConfigMap.Name}, Key: e.ConfigMap.Key, Optional: yes(e.ConfigMap.Optional)}
	case e.Secret != nil:
		from.SecretKeyRef = &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: e.Secret.Name}, Key: e.Secret.Key, Optional: yes(e.Secret.Optional)}
	default:
		return o
	}
	o.ValueFrom = &from
	return o
}

func encodeResourceRef(r *pod.ResourceRef) *corev1.ResourceFieldSelector {
	o := &corev1.ResourceFieldSelector{ContainerName: r.Container, Resource: r.Resource}
	if r.DivisorMilli > 0 {
		o.Divisor = *resource.NewMilliQuantity(r.DivisorMilli, resource.DecimalSI)
		if strings.HasSuffix(r.Resource, ".cpu") {
			return o
		}
		for _, s := range byteDivisors { // 1Mi rather than 1048576
			if q := resource.MustParse(s); q.Cmp(o.Divisor) == 0 {
				o.Divisor = q
			}
		}
	}
	return o
}

func encodeResources(r pod.Resources) (o corev1.ResourceRequirements) {
	set := func(list *corev1.ResourceList, name corev1.ResourceName, q *resource.Quantity) {
		if *list == nil {
			*list = corev1.ResourceList{}
		}
		(*list)[name] = *q
	}
	bytes := func(n int64) *resource.Quantity { return resource.NewQuantity(n, resource.BinarySI) }
	milli := func(n int64) *resource.Quantity { return resource.NewMilliQuantity(n, resource.DecimalSI) }
	// A request of 0 beside a limit was given as such: left out it would be the limit.
	if r.CPULimitMilli > 0 {
		set(&o.Limits, corev1.ResourceCPU, milli(r.CPULimitMilli))
	}
	if r.CPURequestMilli > 0 || r.CPULimitMilli > 0 {
		set(&o.Requests, corev1.ResourceCPU, milli(r.CPURequestMilli))
	}
	if r.MemoryLimitBytes > 0 {
		set(&o.Limits, corev1.ResourceMemory, bytes(r.MemoryLimitBytes))
	}
	if r.MemoryRequestBytes > 0 || r.MemoryLimitBytes > 0 {
		set(&o.Requests, corev1.ResourceMemory, bytes(r.MemoryRequestBytes))
	}
	if r.EphemeralBytes > 0 {
		set(&o.Limits, corev1.ResourceEphemeralStorage, bytes(r.EphemeralBytes))
	}
	for size, n := range r.HugepageBytes {
		set(&o.Limits, corev1.ResourceName(corev1.ResourceHugePagesPrefix+size), bytes(n))
	}
	return o
}

func encodeSecurity(s *pod.ContainerSecurity) *corev1.SecurityContext {
	o := &corev1.SecurityContext{
		RunAsUser: s.RunAsUser, RunAsGroup: s.RunAsGroup, RunAsNonRoot: s.RunAsNonRoot,
		Privileged: yes(s.Privileged), ReadOnlyRootFilesystem: yes(s.ReadOnlyRoot), AllowPrivilegeEscalation: s.AllowPrivilegeEscalation,
		ProcMount:      text[corev1.ProcMountType](s.ProcMount),
		SeccompProfile: encodeSeccomp(s.Seccomp), AppArmorProfile: encodeAppArmor(s.AppArmor), SELinuxOptions: encodeSELinux(s.SELinuxOptions),
	}
	if len(s.AddCapabilities)+len(s.DropCapabilities) > 0 {
		c := &corev1.Capabilities{}
		for _, n := range s.AddCapabilities {
			c.Add = append(c.Add, corev1.Capability(n))
		}
		for _, n := range s.DropCapabilities {
			c.Drop = append(c.Drop, corev1.Capability(n))
		}
		o.Capabilities = c
	}
	if *o == (corev1.SecurityContext{}) {
		return nil
	}
	return o
}

func encodePort(p pod.PortRef) intstr.IntOrString {
	if p.Name != "" {
		return intstr.FromString(p.Name)
	}
	return intstr.FromInt32(int32(p.Number))
}

func encodeHTTP(a *pod.HTTPAction) *corev1.HTTPGetAction {
	if a == nil {
		return nil
	}
	o := &corev1.HTTPGetAction{Host: a.Host, Path: a.Path, Port: encodePort(a.Port), Scheme: corev1.URISchemeHTTP}
	if a.TLS {
		o.Scheme = corev1.URISchemeHTTPS
	}
	for _, h := range a.Headers {
		o.HTTPHeaders = append(o.HTTPHeaders, corev1.HTTPHeader{Name: h[0], Value: h[1]})
	}
	return o
}

func encodeTCP(a *pod.TCPAction) *corev1.TCPSocketAction {
	if a == nil {
		return nil
	}
	return &corev1.TCPSocketAction{Host: a.Host, Port: encodePort(a.Port)}
}

func encodeExec(command []string) *corev1.ExecAction {
	if len(command) == 0 {
		return nil
	}
	return &corev1.ExecAction{Command: command}
}

func encodeProbe(p *pod.Probe) *corev1.Probe {
	if p == nil {
		return nil
	}
	o := &corev1.Probe{
		ProbeHandler:        corev1.ProbeHandler{Exec: encodeExec(p.Exec), HTTPGet: encodeHTTP(p.HTTP), TCPSocket: encodeTCP(p.TCP)},
		InitialDelaySeconds: int32(p.InitialDelay / time.Second), PeriodSeconds: int32(p.Period / time.Second), TimeoutSeconds: int32(p.Timeout / time.Second),
		SuccessThreshold: int32(p.SuccessThreshold), FailureThreshold: int32(p.FailureThreshold),
	}
	if g := p.GRPC; g != nil {
		o.GRPC = &corev1.GRPCAction{Port: int32(g.Port.Number), Service: &g.Service}
	}
	if p.TerminationGrace > 0 {
		o.TerminationGracePeriodSeconds = seconds(p.TerminationGrace)
	}
	return o
}

func encodeHook(h *pod.Hook) *corev1.LifecycleHandler {
	if h == nil {
		return nil
	}
	o := &corev1.LifecycleHandler{Exec: encodeExec(h.Exec), HTTPGet: encodeHTTP(h.HTTP), TCPSocket: encodeTCP(h.TCP)}
	if h.Sleep > 0 {
		o.Sleep = &corev1.SleepAction{Seconds: int64(h.Sleep / time.Second)}
	}
	return o
}
