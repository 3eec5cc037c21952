package manifest

import (
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/orlop-io/orlop/internal/pod"
)

// volumes converts the pod's volumes and returns them by name.
func (d *decoder) volumes(vs []corev1.Volume, out *pod.Spec) map[string]*pod.Volume {
	byName := make(map[string]*pod.Volume, len(vs))
	for i := range vs {
		v, p := &vs[i], fmt.Sprintf("spec.volumes[%d]", i)
		pv := pod.Volume{Name: v.Name}
		switch {
		case v.Name == "":
			d.invalid(p+".name", "must be given")
		case byName[v.Name] != nil:
			d.invalid(p+".name", "%q is the name of another volume", v.Name)
		default:
			d.all(p+".name", dnsLabel(v.Name))
		}
		n := 0
		if s := v.EmptyDir; s != nil {
			n++
			pv.EmptyDir = d.emptyDir(p+".emptyDir", s)
		}
		if s := v.HostPath; s != nil {
			n++
			pv.HostPath = d.hostPath(p+".hostPath", s)
		}
		if s := v.ConfigMap; s != nil {
			n++
			sp := p + ".configMap"
			pv.ConfigMap = &pod.FileSource{
				Name: d.refName(sp+".name", s.Name), Items: d.items(sp, s.Items),
				Mode: d.mode(sp+".defaultMode", s.DefaultMode), Optional: isTrue(s.Optional),
			}
		}
		if s := v.Secret; s != nil {
			n++
			sp := p + ".secret"
			pv.Secret = &pod.FileSource{
				Name: d.refName(sp+".secretName", s.SecretName), Items: d.items(sp, s.Items),
				Mode: d.mode(sp+".defaultMode", s.DefaultMode), Optional: isTrue(s.Optional),
			}
		}
		if s := v.DownwardAPI; s != nil {
			n++
			sp := p + ".downwardAPI"
			pv.Downward = &pod.DownwardSource{Items: d.downwardItems(sp, s.Items), Mode: d.mode(sp+".defaultMode", s.DefaultMode)}
		}
		if s := v.Projected; s != nil {
			n++
			pv.Projected = d.projected(p+".projected", s)
		}
		if s := v.PersistentVolumeClaim; s != nil {
			n++
			pv.Claim = &pod.ClaimRef{Name: d.refName(p+".persistentVolumeClaim.claimName", s.ClaimName), ReadOnly: s.ReadOnly}
		}
		if n != 1 && !d.refusedBelow(p) {
			d.exactlyOne(p, n, volumeKinds)
		}
		out.Volumes = append(out.Volumes, pv)
		byName[v.Name] = &pv
	}
	return byName
}

// refusedBelow tells whether a field directly below the path was refused or unreadable: then what
// is missing there has been explained.
func (d *decoder) refusedBelow(p string) bool {
	for f := range d.failed {
		if parent(f) == p {
			return true
		}
	}
	return false
}

func (d *decoder) emptyDir(p string, s *corev1.EmptyDirVolumeSource) *pod.EmptyDir {
	e := &pod.EmptyDir{Memory: s.Medium == corev1.StorageMediumMemory}
	if s.Medium != "" && s.Medium != corev1.StorageMediumMemory {
		d.invalid(p+".medium", "%q is not supported yet; supported: Memory, or leave it out for the disk", s.Medium)
	}
	if s.SizeLimit != nil {
		e.SizeBytes = d.bytes(p+".sizeLimit", *s.SizeLimit)
	}
	return e
}

func (d *decoder) hostPath(p string, s *corev1.HostPathVolumeSource) *pod.HostPath {
	h := &pod.HostPath{Path: s.Path}
	switch {
	case s.Path == "":
		d.invalid(p+".path", "must be given")
	case !strings.HasPrefix(s.Path, "/"):
		d.invalid(p+".path", "%q must be absolute", s.Path)
	case slices.Contains(strings.Split(s.Path, "/"), ".."):
		d.invalid(p+".path", "%q must not contain '..'", s.Path)
	case strings.ContainsRune(s.Path, 0):
		d.invalid(p+".path", "%q must not contain a zero byte", s.Path)
	}
	if s.Type != nil {
		h.Type = string(*s.Type)
		oneOf(d, p+".type", *s.Type, corev1.HostPathDirectoryOrCreate, corev1.HostPathDirectory, corev1.HostPathFileOrCreate,
			corev1.HostPathFile, corev1.HostPathSocket, corev1.HostPathCharDev, corev1.HostPathBlockDev)
	}
	return h
}

func (d *decoder) mode(p string, m *int32) uint32 {
	switch {
	case m == nil:
		return 0
	case *m < 0 || *m > 0o777:
		d.invalid(p, "%d (%#o) is not a mode; modes are 0 to 0777, and JSON has no octal numbers: 0644 is 420", *m, *m)
	case *m == 0:
		d.invalid(p, "files that nobody may open are not supported; leave it out for 0644")
	}
	return uint32(*m)
}

func (d *decoder) items(p string, items []corev1.KeyToPath) (out []pod.FileItem) {
	for i, it := range items {
		ip := fmt.Sprintf("%s.items[%d]", p, i)
		if it.Key == "" {
			d.invalid(ip+".key", "must be given")
		} else {
			d.all(ip+".key", configKey(it.Key))
		}
		d.all(ip+".path", keyPath(it.Path))
		out = append(out, pod.FileItem{Key: it.Key, Path: it.Path, Mode: d.mode(ip+".mode", it.Mode)})
	}
	return out
}

func (d *decoder) downwardItems(p string, items []corev1.DownwardAPIVolumeFile) (out []pod.DownwardItem) {
	seen := map[string]bool{}
	for i, it := range items {
		ip := fmt.Sprintf("%s.items[%d]", p, i)
		d.all(ip+".path", keyPath(it.Path))
		if seen[path.Clean(it.Path)] {
			d.invalid(ip+".path", "%q is the path of another item", it.Path)
		}
		seen[path.Clean(it.Path)] = true
		o := pod.DownwardItem{Path: it.Path, Mode: d.mode(ip+".mode", it.Mode)}
		n := 0
		if r := it.FieldRef; r != nil {
			n++
			o.Field = d.fieldRef(ip+".fieldRef", r, true)
		}
		if r := it.ResourceFieldRef; r != nil {
			n++
			o.Resource = d.resourceRef(ip+".resourceFieldRef", r, true)
		}
		d.exactlyOne(ip, n, "fieldRef, resourceFieldRef")
		out = append(out, o)
	}
	return out
}

func (d *decoder) projected(p string, s *corev1.ProjectedVolumeSource) *pod.Projected {
	out := &pod.Projected{Mode: d.mode(p+".defaultMode", s.DefaultMode)}
	if len(s.Sources) == 0 {
		d.invalid(p+".sources", "at least one source must be given")
	}
	for i, src := range s.Sources {
		sp := fmt.Sprintf("%s.sources[%d]", p, i)
		var o pod.ProjectedSource
		n := 0
		if c := src.ConfigMap; c != nil {
			n++
			o.ConfigMap = &pod.FileSource{Name: d.refName(sp+".configMap.name", c.Name), Items: d.items(sp+".configMap", c.Items), Optional: isTrue(c.Optional)}
		}
		if c := src.Secret; c != nil {
			n++
			o.Secret = &pod.FileSource{Name: d.refName(sp+".secret.name", c.Name), Items: d.items(sp+".secret", c.Items), Optional: isTrue(c.Optional)}
		}
		if c := src.DownwardAPI; c != nil {
			n++
			o.Downward = &pod.DownwardSource{Items: d.downwardItems(sp+".downwardAPI", c.Items)}
		}
		if n != 1 && !d.refusedBelow(sp) {
			d.exactlyOne(sp, n, "configMap, secret, downwardAPI")
		}
		out.Sources = append(out.Sources, o)
	}
	return out
}

// mounts converts a container's mounts and devices.
func (d *decoder) mounts(p string, c *corev1.Container, volumes map[string]*pod.Volume, privileged bool, out *pod.Container) {
	taken := map[string]bool{}
	known := func(vp, name string) *pod.Volume {
		if name == "" {
			d.invalid(vp, "must be given")
			return nil
		}
		v := volumes[name]
		if v == nil {
			names := make([]string, 0, len(volumes))
			for n := range volumes {
				names = append(names, n)
			}
			slices.Sort(names)
			hint := "; the pod has no volumes"
			if near := nearest(name, names); near != "" {
				hint = "; did you mean " + near + "?"
			} else if len(names) > 0 {
				hint = "; there are " + strings.Join(names, ", ")
			}
			d.invalid(vp, "the pod has no volume %q%s", name, hint)
		}
		return v
	}
	for i, m := range c.VolumeMounts {
		mp := fmt.Sprintf("%s.volumeMounts[%d]", p, i)
		known(mp+".name", m.Name)
		o := pod.Mount{Volume: m.Name, Path: m.MountPath, SubPath: m.SubPath, SubPathExpr: m.SubPathExpr, ReadOnly: m.ReadOnly}
		switch {
		case m.MountPath == "":
			d.invalid(mp+".mountPath", "must be given")
		case strings.ContainsAny(m.MountPath, ":\x00"):
			d.invalid(mp+".mountPath", "%q must not contain ':'", m.MountPath)
		case path.Clean("/"+m.MountPath) == "/":
			d.invalid(mp+".mountPath", "%q: the container's root cannot be mounted over", m.MountPath)
		default:
			if !strings.HasPrefix(m.MountPath, "/") {
				o.Path = "/" + m.MountPath // as Kubernetes does
			}
			if taken[path.Clean(o.Path)] {
				d.invalid(mp+".mountPath", "%q is the path of another mount of this container", m.MountPath)
			}
			taken[path.Clean(o.Path)] = true
		}
		if m.SubPath != "" {
			d.all(mp+".subPath", relativePath(m.SubPath))
		}
		if m.SubPathExpr != "" {
			d.all(mp+".subPathExpr", relativePath(m.SubPathExpr))
			if m.SubPath != "" {
				d.invalid(mp+".subPathExpr", "cannot be together with subPath")
			}
		}
		if m.MountPropagation != nil {
			o.Propagation = string(*m.MountPropagation)
			oneOf(d, mp+".mountPropagation", *m.MountPropagation, corev1.MountPropagationNone, corev1.MountPropagationHostToContainer, corev1.MountPropagationBidirectional)
			if *m.MountPropagation == corev1.MountPropagationBidirectional && !privileged {
				d.invalid(mp+".mountPropagation", "Bidirectional is for privileged containers only")
			}
		}
		if m.RecursiveReadOnly != nil {
			o.RecursiveReadOnly = string(*m.RecursiveReadOnly)
			oneOf(d, mp+".recursiveReadOnly", *m.RecursiveReadOnly, corev1.RecursiveReadOnlyDisabled, corev1.RecursiveReadOnlyIfPossible, corev1.RecursiveReadOnlyEnabled)
			if *m.RecursiveReadOnly != corev1.RecursiveReadOnlyDisabled {
				if !m.ReadOnly {
					d.invalid(mp+".recursiveReadOnly", "%s needs readOnly: true", *m.RecursiveReadOnly)
				}
				if o.Propagation != "" && o.Propagation != string(corev1.MountPropagationNone) {
					d.invalid(mp+".recursiveReadOnly", "%s cannot be together with mountPropagation %s", *m.RecursiveReadOnly, o.Propagation)
				}
			}
		}
		out.Mounts = append(out.Mounts, o)
	}
	for i, v := range c.VolumeDevices {
		vp := fmt.Sprintf("%s.volumeDevices[%d]", p, i)
		if src := known(vp+".name", v.Name); src != nil && src.Claim == nil && !d.refusedBelow(vp) {
			d.invalid(vp+".name", "%q is not a persistentVolumeClaim; only a claim can be a device", v.Name)
		}
		switch {
		case v.DevicePath == "":
			d.invalid(vp+".devicePath", "must be given")
		case !strings.HasPrefix(v.DevicePath, "/") || slices.Contains(strings.Split(v.DevicePath, "/"), ".."):
			d.invalid(vp+".devicePath", "%q must be absolute, without '..'", v.DevicePath)
		case taken[path.Clean(v.DevicePath)]:
			d.invalid(vp+".devicePath", "%q is the path of another volume of this container", v.DevicePath)
		}
		for _, m := range c.VolumeMounts {
			if m.Name == v.Name {
				d.invalid(vp+".name", "%q is mounted by this container too; a volume is either a directory or a device", v.Name)
			}
		}
		taken[path.Clean(v.DevicePath)] = true
		out.Devices = append(out.Devices, pod.Device{Volume: v.Name, Path: v.DevicePath})
	}
}
