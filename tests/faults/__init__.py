"""Tests of what goes wrong on real machines: kills, full disks, damaged and hostile files."""
