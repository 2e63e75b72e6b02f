// Package netlab makes test hosts.
package netlab
