package manifest

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/orlop-io/orlop/internal/pod"
	"github.com/orlop-io/orlop/internal/volume"
)

func encodeVolume(v *pod.Volume) corev1.Volume {
	o := corev1.Volume{Name: v.Name}
	switch {
	case v.EmptyDir != nil:
		e := &corev1.EmptyDirVolumeSource{}
		if v.EmptyDir.Memory {
			e.Medium = corev1.StorageMediumMemory
		}
		if v.EmptyDir.SizeBytes > 0 {
			e.SizeLimit = resource.NewQuantity(v.EmptyDir.SizeBytes, resource.BinarySI)
		}
		o.EmptyDir = e
	case v.HostPath != nil:
		o.HostPath = &corev1.HostPathVolumeSource{Path: v.HostPath.Path, Type: text[corev1.HostPathType](v.HostPath.Type)}
	case v.ConfigMap != nil:
		s := v.ConfigMap
		o.ConfigMap = &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: s.Name}, Items: encodeItems(s.Items), DefaultMode: encodeMode(s.Mode), Optional: yes(s.Optional)}
	case v.Secret != nil:
		s := v.Secret
		o.Secret = &corev1.SecretVolumeSource{SecretName: s.Name, Items: encodeItems(s.Items), DefaultMode: encodeMode(s.Mode), Optional: yes(s.Optional)}
	case v.Downward != nil:
		o.DownwardAPI = &corev1.DownwardAPIVolumeSource{Items: encodeDownward(v.Downward.Items), DefaultMode: encodeMode(v.Downward.Mode)}
	case v.Projected != nil:
		p := &corev1.ProjectedVolumeSource{DefaultMode: encodeMode(v.Projected.Mode)}
		for _, s := range v.Projected.Sources {
			var one corev1.VolumeProjection
			switch {
			case s.ConfigMap != nil:
				one.ConfigMap = &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: s.ConfigMap.Name}, Items: encodeItems(s.ConfigMap.Items), Optional: yes(s.ConfigMap.Optional)}
			case s.Secret != nil:
				one.Secret = &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: s.Secret.Name}, Items: encodeItems(s.Secret.Items), Optional: yes(s.Secret.Optional)}
			case s.Downward != nil:
				one.DownwardAPI = &corev1.DownwardAPIProjection{Items: encodeDownward(s.Downward.Items)}
			}
			p.Sources = append(p.Sources, one)
		}
		o.Projected = p
	case v.Claim != nil:
		o.PersistentVolumeClaim = &corev1.PersistentVolumeClaimVolumeSource{ClaimName: v.Claim.Name, ReadOnly: v.Claim.ReadOnly}
	}
	return o
}

func encodeMode(m uint32) *int32 {
	if m == 0 {
		return nil
	}
	v := int32(m)
	return &v
}

func encodeItems(items []pod.FileItem) (o []corev1.KeyToPath) {
	for _, it := range items {
		o = append(o, corev1.KeyToPath{Key: it.Key, Path: it.Path, Mode: encodeMode(it.Mode)})
	}
	return o
}

func encodeDownward(items []pod.DownwardItem) (o []corev1.DownwardAPIVolumeFile) {
	for _, it := range items {
		one := corev1.DownwardAPIVolumeFile{Path: it.Path, Mode: encodeMode(it.Mode)}
		if it.Field != "" {
			one.FieldRef = &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: it.Field}
		}
		if it.Resource != nil {
			one.ResourceFieldRef = encodeResourceRef(it.Resource)
		}
		o = append(o, one)
	}
	return o
}

// EncodeClaim returns the claim as a Kubernetes object, as it was asked for.
func EncodeClaim(c *volume.Claim) *corev1.PersistentVolumeClaim {
	mode := corev1.PersistentVolumeMode(c.Mode)
	class := c.Class
	o := &corev1.PersistentVolumeClaim{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: KindClaim},
		ObjectMeta: metav1.ObjectMeta{Name: c.Name, Namespace: c.Namespace, Labels: c.Labels, Annotations: c.Annotations},
		Spec:       corev1.PersistentVolumeClaimSpec{VolumeMode: &mode, StorageClassName: &class},
	}
	for _, m := range c.AccessModes {
		o.Spec.AccessModes = append(o.Spec.AccessModes, corev1.PersistentVolumeAccessMode(m))
	}
	o.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(c.SizeBytes, resource.BinarySI)}
	return o
}

// EncodeConfig returns a config map or secret as a Kubernetes object.
func EncodeConfig(c *pod.Config) any {
	meta := metav1.ObjectMeta{Name: c.Name, Namespace: c.Namespace, Labels: c.Labels}
	if !c.CreatedAt.IsZero() {
		meta.CreationTimestamp = metav1.NewTime(c.CreatedAt)
	}
	if c.Secret {
		return &corev1.Secret{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: KindSecret}, ObjectMeta: meta,
			Type: corev1.SecretType(c.Type), Immutable: yes(c.Immutable), Data: c.Data,
		}
	}
	o := &corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: KindConfigMap}, ObjectMeta: meta, Immutable: yes(c.Immutable)}
	for k, v := range c.Data {
		if isText(v) {
			if o.Data == nil {
				o.Data = map[string]string{}
			}
			o.Data[k] = string(v)
		} else {
			if o.BinaryData == nil {
				o.BinaryData = map[string][]byte{}
			}
			o.BinaryData[k] = v
		}
	}
	return o
}
