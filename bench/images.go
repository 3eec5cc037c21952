package main

import (
	"archive/tar"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/orlop-io/orlop/internal/image/imagetest"
)

// The image that is pulled: a large application as people build them.
const (
	bigFiles  = 40_000
	bigBytes  = 400 << 20
	bigLayers = 8
)

// serveImages serves a plain-HTTP registry on a loopback port with the images of the
// benchmark: bench/pause and bench/idle (one static binary each) and, with pulls,
// bench/big.
func serveImages(dir, idle string, pulls bool) (host string, stop func(), err error) {
	var reg imagetest.Registry
	body, err := os.ReadFile(idle)
	if err != nil {
		return "", nil, err
	}
	for _, name := range []string{"pause", "idle"} {
		program := imagetest.Entry{Header: tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755}, Data: string(body)}
		l, err := imagetest.Build(filepath.Join(dir, name), []imagetest.Layer{{Entries: []imagetest.Entry{
			imagetest.Dir("dev"), imagetest.Dir("etc"), imagetest.Dir("proc"), imagetest.Dir("sys"), program,
		}}}, func(i *ocispec.Image, _ *ocispec.Manifest) {
			i.Config.Entrypoint, i.Config.Cmd = []string{"/" + name}, nil
		})
		if err != nil {
			return "", nil, err
		}
		reg.Add("bench/"+name, l)
	}
	if pulls {
		l, err := imagetest.Generate(filepath.Join(dir, "big"), bigFiles, bigBytes, bigLayers)
		if err != nil {
			return "", nil, err
		}
		reg.Add("bench/big", l)
	}
	srv := httptest.NewServer(&reg)
	return strings.TrimPrefix(srv.URL, "http://"), srv.Close, nil
}
