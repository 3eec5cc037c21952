package manifest

import (
	"encoding/json"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"

	"github.com/orlop-io/orlop/internal/pod"
)

// maxDataBytes is Kubernetes' limit of a config map's or secret's data.
const maxDataBytes = 1 << 20

func (d *decoder) configMap(c *corev1.ConfigMap) *pod.Config {
	out := &pod.Config{Namespace: c.Namespace, Name: c.Name, Labels: c.Labels, Immutable: isTrue(c.Immutable), Data: map[string][]byte{}}
	for k, v := range c.Data {
		if !utf8.ValidString(v) {
			d.invalid("data["+k+"]", "is not text; put it under binaryData, in base64")
		}
		out.Data[k] = []byte(v)
	}
	for k, v := range c.BinaryData {
		if _, twice := c.Data[k]; twice {
			d.invalid("binaryData["+k+"]", "this key is under data too")
		}
		out.Data[k] = v
	}
	d.data(out, "data", "binaryData")
	return out
}

func (d *decoder) secret(s *corev1.Secret) *pod.Config {
	out := &pod.Config{Namespace: s.Namespace, Name: s.Name, Labels: s.Labels, Immutable: isTrue(s.Immutable), Secret: true, Type: string(s.Type), Data: map[string][]byte{}}
	if out.Type == "" {
		out.Type = string(corev1.SecretTypeOpaque)
	}
	for k, v := range s.Data {
		out.Data[k] = v
	}
	for k, v := range s.StringData { // wins over data, as in Kubernetes
		out.Data[k] = []byte(v)
	}
	d.data(out, "data", "stringData")
	// The types whose content Kubernetes checks.
	need := func(key string) []byte {
		v, ok := out.Data[key]
		if !ok {
			d.invalid("data", "a secret of type %s must have the key %s", out.Type, key)
		}
		return v
	}
	object := func(key string) {
		if v := need(key); v != nil && !json.Valid(v) {
			d.invalid("data["+key+"]", "is not JSON")
		}
	}
	switch s.Type {
	case corev1.SecretTypeDockerConfigJson:
		object(corev1.DockerConfigJsonKey)
	case corev1.SecretTypeDockercfg:
		object(corev1.DockerConfigKey)
	case corev1.SecretTypeTLS:
		need(corev1.TLSCertKey)
		need(corev1.TLSPrivateKeyKey)
	case corev1.SecretTypeSSHAuth:
		need(corev1.SSHAuthPrivateKey)
	case corev1.SecretTypeBasicAuth:
		_, user := out.Data[corev1.BasicAuthUsernameKey]
		_, pass := out.Data[corev1.BasicAuthPasswordKey]
		if !user && !pass {
			d.invalid("data", "a secret of type %s must have the key username or password", out.Type)
		}
	case corev1.SecretTypeServiceAccountToken:
		d.invalid("type", "%s: there is no API server that would fill it in", s.Type)
	}
	return out
}

// data checks keys and size.
func (d *decoder) data(c *pod.Config, fields ...string) {
	total := 0
	for k, v := range c.Data {
		total += len(k) + len(v)
		if msg := configKey(k); msg != "" {
			at := fields[0]
			for _, f := range fields {
				if _, here := d.at[f+"["+k+"]"]; here {
					at = f
				}
			}
			d.invalid(at+"["+k+"]", "%s", msg)
		}
	}
	if total > maxDataBytes {
		d.invalid(fields[0], "all keys together are %d bytes; at most 1 MiB", total)
	}
}

// isText tells what may stand under data of a config map.
func isText(b []byte) bool { return utf8.Valid(b) }
