// Command crash goes through every operation of an image store, printing a line
// after each that was acknowledged, so that a test can kill it at each fault point
// (it is built with -tags faults) and see what is left.
//
//	crash points
//	crash run ROOT REGISTRY DIR ARCHIVE
package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/orlop-io/orlop/internal/base/config"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/base/store"
	"github.com/orlop-io/orlop/internal/image"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func open(root string) (*image.Store, *store.DB) {
	db, err := store.Open(filepath.Join(root, "state.db"), store.Durable)
	check(err)
	cfg := config.Default().Image
	cfg.Parallel = 1 // the same order each time
	cfg.DockerConfig = filepath.Join(root, "none")
	s, err := image.Open(context.Background(), image.Options{Root: root, DB: db, Config: cfg})
	check(err)
	return s, db
}

// forget makes every layer look as if the machine had gone down before it was on
// the disk.
func forget(db *store.DB) {
	b, err := store.NewBucket[map[string]any](db, "image.layers")
	check(err)
	all, err := b.All()
	check(err)
	for k, v := range all {
		v["Durable"], v["Boot"] = false, "an earlier one"
		check(b.Put(k, v))
	}
}

func main() {
	if os.Args[1] == "points" {
		for _, p := range fault.List() {
			if strings.HasPrefix(p, "image.") {
				fmt.Println(p)
			}
		}
		return
	}
	root, registry, dir, archive := os.Args[2], os.Args[3], os.Args[4], os.Args[5]
	ctx := context.Background()
	ack := func(s string) { fmt.Println(s) }
	s, db := open(root)
	ack("open")
	_, err := s.Pull(ctx, registry+"/one:1", image.PullOptions{})
	check(err)
	ack("pull")
	_, err = s.Pack(ctx, image.PackOptions{Source: dir, Ref: "packed", Entrypoint: []string{"/x"}})
	check(err)
	ack("pack")
	data, err := os.ReadFile(archive)
	check(err)
	_, err = s.Import(ctx, bytes.NewReader(data), image.ImportOptions{Name: "imported"})
	check(err)
	ack("import")
	check(s.Tag(ctx, "packed", "tagged"))
	ack("tag")
	check(s.Close())
	forget(db)
	check(db.Close())
	s, db = open(root)
	imgs, err := s.List(ctx)
	check(err)
	for _, i := range imgs {
		_, err := s.LayerDirs(ctx, i.ID)
		check(err)
	}
	ack("again")
	_, err = s.Remove(ctx, registry+"/one:1", nil)
	check(err)
	ack("remove")
	_, err = s.Pull(ctx, registry+"/two:1", image.PullOptions{})
	check(err)
	ack("pull two")
	_, err = s.Remove(ctx, "tagged", nil)
	check(err)
	ack("untag")
	_, err = s.Prune(ctx, image.PruneOptions{All: true})
	check(err)
	ack("prune")
	check(s.Close())
	check(db.Close())
}
