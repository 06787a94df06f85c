# Refuses an object that offers other symbols than ALLOWED to the linker. An inline function that
# was compiled for AVX-512 could otherwise be what the code for old machines calls.
foreach(object ${OBJECTS})
  execute_process(COMMAND "${NM}" --defined-only --extern-only "${object}"
    OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[^\n]+" lines "${output}")
  foreach(line ${lines})
    if(NOT line MATCHES " T ${ALLOWED}$")
      message(FATAL_ERROR "${object}: ${line}\nKernels must keep everything but ${ALLOWED} in an "
        "anonymous namespace, and use no inline functions or templates of other headers.")
    endif()
  endforeach()
endforeach()
