// Marks a function that the compiler makes a version of for each of these processors; the loader
// picks one.
#pragma once

#if defined(__x86_64__) && defined(__gnu_linux__)
#define LONGSIGHT_BY_PROCESSOR \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define LONGSIGHT_BY_PROCESSOR
#endif
