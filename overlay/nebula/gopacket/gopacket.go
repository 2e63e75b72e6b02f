// Package gopacket is empty: of the real one only layers is used by what plenum imports, and this one by tests of others.
package gopacket
