// Package api holds the control API's definition, orlop/v1/control.proto, and the
// code that is generated from it, which is committed.
//
// To generate it again: protoc 3.21 (Debian: protobuf-compiler), and on the path
//
//	go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
//	go install connectrpc.com/connect/cmd/protoc-gen-connect-go@v1.21.1
package api

//go:generate protoc -I . --go_out=. --go_opt=paths=source_relative --connect-go_out=. --connect-go_opt=paths=source_relative orlop/v1/control.proto
