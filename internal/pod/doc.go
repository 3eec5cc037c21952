// Package pod is the domain of pods: what a pod is, how it comes to run, stays
// running and ends.
package pod
