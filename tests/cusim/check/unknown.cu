/* tests/cusim/check/unknown.cu - an instruction that cusim does not know. */
extern "C" __global__ void unknown(unsigned *p)
{
    asm volatile("bmsk.clamp.b32 %0, 1, 2;" : "=r"(p[0]));
}
