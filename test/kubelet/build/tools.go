//go:build tools

// Package build names what the kubelet of the tests is built from. It is a module of its
// own, so that nothing of Kubernetes is among the product's dependencies.
package build

import _ "k8s.io/kubernetes/cmd/kubelet"
