package manifest

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/orlop-io/orlop/internal/pod"
)

// sysctlName is Kubernetes' grammar.
var sysctlName = regexp.MustCompile(`^([a-z0-9][-_a-z0-9]*[./])*[a-z0-9][-_a-z0-9]*$`)

func (d *decoder) podSecurity(s *corev1.PodSpec, out *pod.Spec) {
	sc := s.SecurityContext
	if sc == nil {
		return
	}
	const p = "spec.securityContext"
	o := &out.Security
	o.RunAsUser, o.RunAsGroup, o.RunAsNonRoot = sc.RunAsUser, sc.RunAsGroup, sc.RunAsNonRoot
	o.Groups, o.FSGroup = sc.SupplementalGroups, sc.FSGroup
	d.ids(p, sc.RunAsUser, sc.RunAsGroup)
	if sc.FSGroup != nil {
		d.all(p+".fsGroup", userID(*sc.FSGroup))
	}
	for i, g := range sc.SupplementalGroups {
		d.all(fmt.Sprintf("%s.supplementalGroups[%d]", p, i), userID(g))
	}
	if v := sc.SupplementalGroupsPolicy; v != nil {
		oneOf(d, p+".supplementalGroupsPolicy", *v, corev1.SupplementalGroupsPolicyMerge, corev1.SupplementalGroupsPolicyStrict)
		o.GroupsPolicy = string(*v)
	}
	if v := sc.FSGroupChangePolicy; v != nil {
		oneOf(d, p+".fsGroupChangePolicy", *v, corev1.FSGroupChangeAlways, corev1.FSGroupChangeOnRootMismatch)
		o.FSGroupPolicy = string(*v)
	}
	o.Seccomp = d.seccomp(p+".seccompProfile", sc.SeccompProfile)
	o.AppArmor = d.apparmor(p+".appArmorProfile", sc.AppArmorProfile)
	o.SELinuxOptions = selinux(sc.SELinuxOptions)
	seen := map[string]bool{}
	for i, y := range sc.Sysctls {
		yp := fmt.Sprintf("%s.sysctls[%d]", p, i)
		name := strings.ReplaceAll(y.Name, "/", ".")
		switch {
		case y.Name == "":
			d.invalid(yp+".name", "must be given")
		case len(y.Name) > 253 || !sysctlName.MatchString(y.Name):
			d.invalid(yp+".name", "%q is not the name of a kernel setting; example: net.core.somaxconn", y.Name)
		case seen[name]:
			d.invalid(yp+".name", "%q is set twice", y.Name)
		case strings.HasPrefix(name, "net.") && s.HostNetwork:
			d.invalid(yp+".name", "%q would change the host: the pod has hostNetwork", y.Name)
		case (strings.HasPrefix(name, "kernel.shm") || strings.HasPrefix(name, "kernel.msg") || name == "kernel.sem" || strings.HasPrefix(name, "fs.mqueue.")) && s.HostIPC:
			d.invalid(yp+".name", "%q would change the host: the pod has hostIPC", y.Name)
		}
		seen[name] = true
		o.Sysctls = append(o.Sysctls, pod.Sysctl{Name: y.Name, Value: y.Value})
	}
}

func (d *decoder) ids(p string, user, group *int64) {
	if user != nil {
		d.all(p+".runAsUser", userID(*user))
	}
	if group != nil {
		d.all(p+".runAsGroup", userID(*group))
	}
}

func (d *decoder) containerSecurity(p string, sc *corev1.SecurityContext, o *pod.ContainerSecurity) {
	if sc == nil {
		return
	}
	o.RunAsUser, o.RunAsGroup, o.RunAsNonRoot = sc.RunAsUser, sc.RunAsGroup, sc.RunAsNonRoot
	d.ids(p, sc.RunAsUser, sc.RunAsGroup)
	o.Privileged, o.ReadOnlyRoot = isTrue(sc.Privileged), isTrue(sc.ReadOnlyRootFilesystem)
	o.AllowPrivilegeEscalation = sc.AllowPrivilegeEscalation
	if c := sc.Capabilities; c != nil {
		o.AddCapabilities = d.capabilities(p+".capabilities.add", c.Add)
		o.DropCapabilities = d.capabilities(p+".capabilities.drop", c.Drop)
	}
	if v := sc.AllowPrivilegeEscalation; v != nil && !*v {
		if o.Privileged {
			d.invalid(p+".allowPrivilegeEscalation", "cannot be false for a privileged container")
		}
		if slices.Contains(o.AddCapabilities, "SYS_ADMIN") {
			d.invalid(p+".allowPrivilegeEscalation", "cannot be false together with the capability SYS_ADMIN")
		}
	}
	if v := sc.ProcMount; v != nil {
		oneOf(d, p+".procMount", *v, corev1.DefaultProcMount, corev1.UnmaskedProcMount)
		o.ProcMount = string(*v)
	}
	o.Seccomp = d.seccomp(p+".seccompProfile", sc.SeccompProfile)
	o.AppArmor = d.apparmor(p+".appArmorProfile", sc.AppArmorProfile)
	o.SELinuxOptions = selinux(sc.SELinuxOptions)
}

// capabilityNames are Linux's, to capability 40 (include/uapi/linux/capability.h).
var capabilityNames = strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP
	LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT
	SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE
	AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`)

// capabilities takes names with and without CAP_, in any case, and returns them plain.
func (d *decoder) capabilities(p string, cs []corev1.Capability) (out []string) {
	for i, c := range cs {
		name := strings.TrimPrefix(strings.ToUpper(string(c)), "CAP_")
		if name != "ALL" && !slices.Contains(capabilityNames, name) {
			hint := ""
			if near := nearest(name, capabilityNames); near != "" {
				hint = "; did you mean " + near + "?"
			}
			d.invalid(fmt.Sprintf("%s[%d]", p, i), "%q is not a capability of Linux%s", c, hint)
		}
		out = append(out, name)
	}
	return out
}

func (d *decoder) seccomp(p string, s *corev1.SeccompProfile) *pod.SecurityProfile {
	if s == nil {
		return nil
	}
	oneOf(d, p+".type", s.Type, corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeLocalhost, corev1.SeccompProfileTypeUnconfined)
	return d.profile(p, string(s.Type), s.LocalhostProfile, true)
}

func (d *decoder) apparmor(p string, s *corev1.AppArmorProfile) *pod.SecurityProfile {
	if s == nil {
		return nil
	}
	oneOf(d, p+".type", s.Type, corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeLocalhost, corev1.AppArmorProfileTypeUnconfined)
	return d.profile(p, string(s.Type), s.LocalhostProfile, false)
}

func (d *decoder) profile(p, kind string, local *string, file bool) *pod.SecurityProfile {
	out := &pod.SecurityProfile{Type: kind}
	switch {
	case kind == "":
		d.invalid(p+".type", "must be given")
	case kind != "Localhost" && local != nil:
		d.invalid(p+".localhostProfile", "is for the type Localhost only")
	case kind == "Localhost" && (local == nil || *local == ""):
		d.invalid(p+".localhostProfile", "must be given with the type Localhost")
	case kind == "Localhost":
		if file {
			d.all(p+".localhostProfile", relativePath(*local))
		}
		out.Path = *local
	}
	return out
}

func selinux(s *corev1.SELinuxOptions) *pod.SELinux {
	if s == nil {
		return nil
	}
	return &pod.SELinux{User: s.User, Role: s.Role, Type: s.Type, Level: s.Level}
}
