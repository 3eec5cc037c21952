package manifest

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/orlop-io/orlop/internal/volume"
)

// claim validates c and converts it.
func (d *decoder) claim(c *corev1.PersistentVolumeClaim) *volume.Claim {
	s := &c.Spec
	out := &volume.Claim{
		Namespace: c.Namespace, Name: c.Name, Labels: c.Labels, Annotations: c.Annotations,
		Mode: volume.Filesystem, Class: volume.DefaultClass,
	}
	if len(s.AccessModes) == 0 {
		d.invalid("spec.accessModes", "must be given; ReadWriteOnce is the usual one")
	}
	for i, m := range s.AccessModes {
		oneOf(d, fmt.Sprintf("spec.accessModes[%d]", i), m, volume.ReadWriteOnce, volume.ReadOnlyMany, volume.ReadWriteMany, volume.ReadWriteOncePod)
		if m == "" {
			d.invalid(fmt.Sprintf("spec.accessModes[%d]", i), "is empty")
		}
		out.AccessModes = append(out.AccessModes, string(m))
	}
	if slices.Contains(out.AccessModes, volume.ReadWriteOncePod) && len(out.AccessModes) > 1 {
		d.invalid("spec.accessModes", "ReadWriteOncePod cannot be combined with others")
	}
	if v := s.VolumeMode; v != nil {
		oneOf(d, "spec.volumeMode", *v, corev1.PersistentVolumeFilesystem, corev1.PersistentVolumeBlock)
		if *v != "" {
			out.Mode = volume.Mode(*v)
		}
	}
	if v := s.StorageClassName; v != nil && *v != "" && *v != volume.DefaultClass {
		d.invalid("spec.storageClassName", "there is no storage class %q; leave it out, or say %q", *v, volume.DefaultClass)
	}
	const path = "spec.resources.requests"
	for name := range s.Resources.Requests {
		if name != corev1.ResourceStorage {
			d.invalid(path+"["+string(name)+"]", "a claim requests storage and nothing else")
		}
	}
	q, ok := s.Resources.Requests[corev1.ResourceStorage]
	switch {
	case !ok:
		d.invalid(path, "storage must be given, as in: storage: 1Gi")
	case q.Sign() <= 0:
		d.invalid(path+"[storage]", "%s must be above 0", q.String())
	default:
		out.SizeBytes = d.bytes(path+"[storage]", q)
		if out.SizeBytes > volume.MaxSizeBytes {
			d.invalid(path+"[storage]", "%s is above the largest volume, %d TiB", q.String(), int64(volume.MaxSizeBytes)>>40)
		}
	}
	return out
}
